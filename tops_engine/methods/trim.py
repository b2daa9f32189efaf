"""TRIM (arXiv 2409.10994): the patches that CLIP relates to the question, and one mean of the others."""

from tops_engine import selection
from tops_engine.device.lazy import Tensor
from tops_engine.methods.base import Clip
from tops_engine.methods.per_tile import PerTile, TileChoice
from tops_engine.methods.tokens import VisualTokens


class TRIM(PerTile):
    """Keep the patches of each tile that CLIP relates to the question, and one mean of the others.

    As in every release of the official code the score is the *negative* dot product of patch and text in CLIP's space:
    CLIP's patches are least similar to a text where they show what the text names. The official code can choose the
    number of tokens itself. This is its form for a given number K: K - 1 patches, and the mean, taken before the
    projector, in the place of the last token merged. LLaVA-NeXT is pruned tile by tile, since the official code mixes
    up the order of its tokens.
    """

    name = "trim"
    source = "arXiv 2409.10994"
    reads_question = True
    signals = ("tiles", "encoder_features")

    clip: Clip = None

    def scores(self, image: VisualTokens) -> Tensor:
        embedded = image.clip_embeddings(self.clip)
        return -(embedded.patches @ embedded.question)

    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        selected = selection.top_tokens(scores[tokens], num_keep - 1)
        merged = tokens[selection.others(selected, len(tokens))]
        mean = image.encoder_features()[merged].float().mean(dim=0, keepdim=True)
        return TileChoice(tokens[selected], merged[-1:], mean)

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # CLIP's projection of the patches, and the projector's two layers for the mean. The widths of patches and of
        # CLIP's space are those of CLIP ViT-L, which all published LLaVA models have. The text tower is not counted.
        patch_width, clip_width = 1024, 768
        return 2 * num_tokens * patch_width * clip_width + 2 * feature_size * (patch_width + feature_size)

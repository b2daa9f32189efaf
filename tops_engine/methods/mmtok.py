"""MMTok (arXiv 2508.18264): patches that cover the words of the question and the other patches."""

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.per_tile import PerTile, TileChoice
from tops_engine.methods.tokens import VisualTokens

# Temperatures of the softmax over patches, for the words and for the patches.
WORD_TEMPERATURE, PATCH_TEMPERATURE = 0.02, 0.2


class MMTok(PerTile):
    """Keep the patches of each tile that best cover the words of the question and all patches of the tile.

    A patch covers a word by the cosine similarity of its projected token and the word's embedding, and a patch by that
    of vision features; both are made comparable by a softmax over the patches. The words are all tokens of the last
    message. The official code for LLaVA leaves out words such as "the" and "what" and encodes the others one by one;
    its agent that answers the question first is not included.
    """

    name = "mmtok"
    source = "arXiv 2508.18264"
    reads_question = True
    waits_for_device = True
    signals = ("tiles", "encoder_features")

    patch_weight: float = Field(default=0.5, ge=0, le=10, description="Weight of covering patches beside words.")

    def scores(self, image: VisualTokens) -> Tensor:
        return torch.nn.functional.normalize(image.question_embeddings().float(), dim=-1)

    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        projected = torch.nn.functional.normalize(image.features[tokens].float(), dim=-1)
        words = (scores @ projected.mT / WORD_TEMPERATURE).softmax(dim=1) / max(1, len(scores))
        similarity = selection.cosine_similarity(image.encoder_features()[tokens].float()[None])[0]
        patches = self.patch_weight * (similarity / PATCH_TEMPERATURE).softmax(dim=1) / len(tokens)
        return TileChoice(tokens[selection.max_coverage_select(torch.cat([words, patches]), num_keep)], tokens[:0])

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # The similarity of all pairs (of vision features, about as wide); then each step compares the whole matrix.
        return 2 * num_tokens * num_tokens * feature_size + 2 * num_kept * num_tokens * num_tokens

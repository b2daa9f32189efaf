"""VisPruner (arXiv 2412.01818): patches with much attention of [CLS], and others that do not repeat each other."""

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.per_tile import PerTile, TileChoice
from tops_engine.methods.tokens import VisualTokens


class VisPruner(PerTile):
    """Keep the patches of each tile with the most attention of [CLS], and of the rest those that are least alike.

    The former are called important, the latter diverse. Duplicates are removed from the rest in steps, by cosine
    similarity of vision features. The official code stops with an error where an odd number of patches is left, which
    happens only at small budgets; here such a step divides them as evenly as it can. Similarities are float32; the
    official code computes them in half precision. Without [CLS], the mean attention that a patch receives stands for
    its attention, where the paper takes the same.
    """

    name = "vispruner"
    source = "arXiv 2412.01818"
    waits_for_device = True
    signals = ("tiles", "vision_attention", "encoder_features")

    important: float = Field(default=0.5, ge=0, le=1, description="Share of the budget for the most attended patches.")

    def scores(self, image: VisualTokens) -> Tensor:
        return image.vision_attention()

    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        num_important = int(self.important * num_keep)
        ranked = tokens[selection.top_tokens(scores[tokens], len(tokens))]
        important, rest = ranked[:num_important], ranked[num_important:]
        diverse = rest[selection.distinct_tokens(image.encoder_features()[rest], num_keep - num_important)]
        return TileChoice(torch.cat([important, diverse]), tokens[:0])

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # The similarity of all pairs (of vision features, about as wide); each step then looks at those that are left.
        return 2 * num_tokens * num_tokens * feature_size

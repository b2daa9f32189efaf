"""VScan (arXiv 2505.22654): what two layers of the vision tower attend to, then what the question attends to."""

from collections.abc import Sequence

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.base import Selection
from tops_engine.methods.per_tile import PerTile, TileChoice
from tops_engine.methods.tokens import LayerTokens, VisualTokens
from tops_engine.methods.two_stage import TwoStage


class VScan(TwoStage, PerTile):
    """Keep attended patches of each window, the most attended of a tile, and then what the question attends to.

    Half of the budget of a tile goes to a local scan: the patches with the most attention in an early vision layer, the
    same number of each window of 6 x 6. The other half goes to a global scan: the most attended of the others in the
    layer that feeds the projector. Each dropped token is averaged into the most similar token of its tile. From the
    middle of the language model on a third of the tokens remain, those with the most attention from the last token of
    the prompt (96 and 32 of 576 tokens average 64, as in the official scripts). Attention is that of [CLS], or the mean
    that a patch receives; the early layer is the 6th of CLIP's 24 and the 8th of Qwen2.5-VL's 32, as in the code.

    Where the budget does not divide evenly, the official code for LLaVA keeps fewer tokens. Here, as in that for
    Qwen2.5-VL, windows are filled in the order of attention up to the same bound. That code has windows of 4 x 4, of
    which the last in a row takes the patches left over, as here: ``window=4``.
    """

    name = "vscan"
    source = "arXiv 2505.22654"
    waits_for_device = True
    signals = ("tiles", "vision_attention", "shallow_attention")
    second_stage = (0.5, 1 / 3)

    window: int = Field(default=6, ge=1, description="Side of a window, in tokens.")

    def scores(self, image: VisualTokens) -> Tensor:
        return image.vision_attention()

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        chosen = super().select_visual(images, counts)
        return [_with_dropped_of_tile(image, one) for image, one in zip(images, chosen, strict=True)]

    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        boxes = image.layout.boxes.to(tokens.device)[tokens]
        local = selection.window_select(image.shallow_attention()[tokens], boxes, num_keep // 2, self.window)
        rest = selection.others(local, len(tokens))
        best = rest[selection.top_tokens(scores[tokens[rest]], num_keep - len(local))]
        return TileChoice(tokens[torch.cat([local, best])], tokens[:0])

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        rows = [image.attention("last")[0] for image in images]
        return [Selection.highest(row, count) for row, count in zip(rows, counts, strict=True)]

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # The similarity of dropped and kept tokens of a tile, and the sums; the second stage only sorts.
        return 4 * num_tokens * num_kept * feature_size


def _with_dropped_of_tile(image: VisualTokens, chosen: Selection) -> Selection:
    """Return the selection with each kept token averaged with the dropped tokens of its tile most similar to it."""
    tiles, kept = image.tiles(), chosen.indices
    features = image.features[kept]
    for number in sorted(set(tiles[kept].tolist()) - {0}):
        tokens, places = (tiles == number).nonzero().flatten(), tiles[kept] == number
        local = torch.searchsorted(tokens, kept[places])
        shown = torch.ones_like(tokens, dtype=torch.bool)
        features[places] = selection.fold_dropped(image.features[tokens], shown, local, features[places])
    return Selection(kept, chosen.order, features)

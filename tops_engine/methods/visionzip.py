"""VisionZip (arXiv 2412.04467): the patches with the most attention of [CLS]; the others are merged by their keys."""

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.per_tile import PerTile, TileChoice
from tops_engine.methods.tokens import VisualTokens


class VisionZip(PerTile):
    """Keep the tokens of each tile with the most attention of [CLS], and merge the others by similar keys.

    The former are called dominant, the merged ones contextual. Of a budget of 64 tokens, 54 are dominant (53 patches
    and the [CLS] token, as in the official code) and 10 contextual; other budgets have the same proportion. Merging
    happens before the projector. A contextual token takes the place of the patch that it is merged into, and [CLS] that
    of the first patch that is neither dominant nor such a target. The official code puts [CLS] first and contextual
    tokens last. Where there is no [CLS], or the projector cannot read it, all dominant tokens are patches.
    """

    name = "visionzip"
    source = "arXiv 2412.04467"
    waits_for_device = True
    signals = ("tiles", "vision_attention", "encoder_features", "vision_keys", "cls_features")

    contextual: float = Field(default=10 / 64, ge=0, lt=1, description="Share of the budget for merged tokens.")

    def scores(self, image: VisualTokens) -> Tensor:
        return image.vision_attention()

    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        num_contextual = min(round(self.contextual * num_keep), num_keep - 1)
        num_cls = 0 if image.cls_features is None else 1
        dominant = selection.top_tokens(scores[tokens], num_keep - num_contextual - num_cls)
        remaining = tokens[selection.others(dominant, len(tokens))]
        vision = image.encoder_features()
        targets, merged = selection.merge_into_targets(
            vision[remaining].float(), image.vision_keys()[remaining], num_contextual
        )
        places = remaining[targets]
        if image.cls_features is not None:
            first_free = remaining[selection.others(targets, len(remaining))[:1]]
            places = torch.cat([first_free, places])
            merged = torch.cat([image.cls_features()[tokens[:1]].float(), merged])
        return TileChoice(tokens[dominant], places, merged)

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # Similarity of keys (about 64 wide) with those of the targets, and the projector for the merged tokens.
        num_merged = round(self.contextual * num_kept)
        return 2 * num_tokens * num_merged * 64 + 4 * (num_merged + 1) * feature_size * feature_size

"""PruneSID (arXiv 2603.09480): attended patches of every semantic group that do not repeat each other."""

from tops_engine import selection
from tops_engine.device.lazy import Tensor
from tops_engine.methods.per_tile import PerTile, TileChoice
from tops_engine.methods.tokens import VisualTokens


class PruneSID(PerTile):
    """Keep patches of every semantic group of a tile, those with much attention of [CLS] that differ from each other.

    Groups are the principal components of vision features, a quarter of the budget in number. The components are
    computed exactly; the official code approximates them from random vectors, so that its choice varies from run to
    run. As there, [CLS] takes one place of the budget; it stands at the first patch that is not kept. Where there is no
    [CLS], or the projector cannot read it, all kept tokens are patches. The paper's own number of tokens for each
    picture is left to ``allocation``.
    """

    name = "prunesid"
    source = "arXiv 2603.09480"
    waits_for_device = True
    signals = ("tiles", "vision_attention", "encoder_features", "cls_features")

    def scores(self, image: VisualTokens) -> Tensor:
        return image.vision_attention()

    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        has_cls = image.cls_features is not None and num_keep > 1
        chosen = selection.grouped_select(
            image.encoder_features()[tokens], scores[tokens], num_keep, num_keep - int(has_cls)
        )
        if image.cls_features is None or not has_cls:
            return TileChoice(tokens[chosen], tokens[:0])
        free = selection.others(chosen, len(tokens))[:1]
        return TileChoice(tokens[chosen], tokens[free], image.cls_features()[tokens[:1]])

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # The similarity of all pairs, the covariance of all pairs and its eigenvectors.
        return 4 * num_tokens * num_tokens * feature_size + 9 * num_tokens**3

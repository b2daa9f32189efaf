"""PruMerge+ (arXiv 2403.15388): attended tokens and an even grid, each merged with its neighbours."""

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.per_tile import PerTile, TileChoice
from tops_engine.methods.tokens import VisualTokens


class PruMergePlus(PerTile):
    """Keep attended and evenly spaced tokens of each tile, each merged with its neighbours, and one sum of the rest.

    The attention is the [CLS] row of the vision tower's last layer, taken as a single head. Without [CLS] it is the
    mean attention that a token receives. Neighbours are the 32 tokens with the most similar keys in that layer,
    weighted by attention. All of it happens before the projector.

    The official code decides itself how many tokens to keep (outliers of the attention, and three times as many in a
    grid). This is its form for a fixed budget K: K / 4 tokens by attention, evenly spaced ones up to K - 1, and the
    merged rest, which takes the place of the last token merged.
    """

    name = "prumerge_plus"
    source = "arXiv 2403.15388"
    waits_for_device = True
    signals = ("tiles", "encoder_features", "last_layer_attention", "last_layer_keys")

    def scores(self, image: VisualTokens) -> Tensor:
        return image.last_layer_attention()

    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        attention, vision = scores[tokens], image.encoder_features()[tokens].float()
        attended = selection.top_tokens(attention, min(round(num_keep / 4), num_keep - 1))
        selected = fill_evenly(attended, num_keep - 1, len(tokens))
        unselected = selection.others(selected, len(tokens))
        merged = selection.merge_neighbours(vision, image.last_layer_keys()[tokens], attention, selected)
        rest = attention[unselected] @ vision[unselected]
        places = torch.cat([selected, unselected[-1:]])
        return TileChoice(tokens[:0], tokens[places], torch.cat([merged, rest[None]]))

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # Similarity of keys, the mixture (of vision features, about as wide), and the projector for all kept tokens.
        return 4 * num_tokens * num_kept * feature_size + 4 * num_kept * feature_size * feature_size


def fill_evenly(tokens: Tensor, count: int, size: int) -> Tensor:
    """Add evenly spaced numbers of 0 .. size - 1 to ``tokens`` up to ``count``: int64 in ascending order.

    A number that is already there is replaced by the next free one.
    """
    chosen = set(tokens.tolist())
    missing = count - len(chosen)
    for step in range(missing):
        index = (2 * step + 1) * size // (2 * missing)
        while index in chosen:
            index = (index + 1) % size
        chosen.add(index)
    return torch.tensor(sorted(chosen), dtype=torch.int64, device=tokens.device)

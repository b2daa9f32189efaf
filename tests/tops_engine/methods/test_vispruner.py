"""Compare VisPruner with the method written out token by token."""

import pytest

from tests.support.visual_tokens import cosine, of_tile, random_tokens
from tops_engine.errors import InvalidInput
from tops_engine.methods import VisualTokens
from tops_engine.methods.vispruner import VisPruner
from tops_engine.settings import Pruning


def pruned_tile(image: VisualTokens, tile: int, num_keep: int, num_important: int) -> set[int]:
    """Return the kept tokens of a tile."""
    attention, vision = image.vision_attention(), image.encoder_features()
    ranked = sorted(of_tile(image, tile), key=lambda token: -float(attention[token]))
    important, left = ranked[:num_important], ranked[num_important:]
    while len(left) > num_keep - num_important:
        even, odd = left[::2], left[1::2]
        nearest = {token: max(cosine(vision[token], vision[other]) for other in odd) for token in even}
        even.sort(key=lambda token: -nearest[token])
        left = even[min(8, len(left) - (num_keep - num_important), len(even)) :] + odd
    return {*important, *left}


@pytest.mark.parametrize(("num_keep", "important", "num_important"), [(1, 0.5, 0), (20, 0.5, 10), (37, 0.25, 9)])
def test_important_and_diverse_tokens(num_keep: int, important: float, num_important: int) -> None:
    image = random_tokens([60], seed=num_keep)
    (selection,) = VisPruner(important=important).select_visual([image], [num_keep])
    assert set(selection.indices.tolist()) == pruned_tile(image, 1, num_keep, num_important)


def test_each_tile_is_pruned_by_itself() -> None:
    image = random_tokens([30, 30, 20], newlines=4, seed=1)
    (selection,) = VisPruner().select_visual([image], [16])
    expected = {token for tile, k in [(1, 6), (2, 6), (3, 4)] for token in pruned_tile(image, tile, k, k // 2)}
    assert set(selection.indices.tolist()) == expected


def test_all_important_are_the_most_attended() -> None:
    image = random_tokens([30])
    (selection,) = VisPruner(important=1.0).select_visual([image], [7])
    assert selection.indices.tolist() == image.vision_attention().topk(7).indices.sort().values.tolist()


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match="less than or equal to 1"):
        Pruning(method="vispruner", important=1.5)

"""Compare PruMerge+ with the method written out token by token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.visual_tokens import cosine, of_tile, random_tokens
from tops_engine.methods import VisualTokens
from tops_engine.methods.prumerge_plus import PruMergePlus, fill_evenly


def merge_tile(image: VisualTokens, tile: int, num_keep: int) -> dict[int, Tensor]:
    """Return the kept tokens of a tile: the projected feature by place."""
    tokens, vision, keys = of_tile(image, tile), image.encoder_features(), image.last_layer_keys()
    attention = image.last_layer_attention()
    selected = sorted(tokens, key=lambda token: -float(attention[token]))[: min(round(num_keep / 4), num_keep - 1)]
    missing = num_keep - 1 - len(selected)
    for step in range(missing):
        at = int((step + 0.5) * len(tokens) / missing)
        while tokens[at] in selected:
            at = (at + 1) % len(tokens)
        selected.append(tokens[at])
    result = {}
    for token in selected:
        rest = [other for other in tokens if other != token]
        nearest = sorted(rest, key=lambda other: -cosine(keys[token], keys[other]))[:32]
        result[token] = image.project(vision[token] + sum((attention[j] * vision[j] for j in nearest), torch.zeros(6)))
    unselected = [token for token in tokens if token not in selected]
    result[unselected[-1]] = image.project(sum((attention[j] * vision[j] for j in unselected), torch.zeros(6)))
    return result


@pytest.mark.parametrize("num_keep", [1, 2, 6, 17, 32, 44])
def test_selected_tokens_are_merged_with_neighbours_and_the_rest_into_one(num_keep: int) -> None:
    image = random_tokens([45], seed=num_keep)
    (selection,) = PruMergePlus().select_visual([image], [num_keep])
    expected = merge_tile(image, 1, num_keep)
    assert selection.indices.tolist() == sorted(expected)
    torch.testing.assert_close(selection.features, torch.stack([expected[place] for place in sorted(expected)]))


def test_each_tile_is_merged_by_itself() -> None:
    image = random_tokens([16, 16, 8], newlines=4, seed=5)
    (selection,) = PruMergePlus().select_visual([image], [20])
    expected = merge_tile(image, 1, 8) | merge_tile(image, 2, 8) | merge_tile(image, 3, 4)
    assert selection.indices.tolist() == sorted(expected)
    torch.testing.assert_close(selection.features, torch.stack([expected[place] for place in sorted(expected)]))


def test_a_tile_that_may_keep_all_is_left_alone() -> None:
    image = random_tokens([3, 9], newlines=2)
    (selection,) = PruMergePlus().select_visual([image], [13])
    assert selection.features is None
    assert selection.indices.tolist() == sorted(set(range(14)) - {of_tile(image, 0)[-1]})


@given(st.integers(1, 20), st.data())
def test_filling_evenly(size: int, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, size - 1), unique=True))
    count = data.draw(st.integers(len(tokens), size))
    filled = fill_evenly(torch.tensor(tokens, dtype=torch.int64), count, size).tolist()
    assert len(set(filled)) == count
    assert set(tokens) <= set(filled)
    assert filled == sorted(filled)


def test_an_empty_choice_is_filled_by_the_middles_of_equal_parts() -> None:
    assert fill_evenly(torch.tensor([], dtype=torch.int64), 4, 24).tolist() == [3, 9, 15, 21]

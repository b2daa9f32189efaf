"""Compare HiPrune with the method written out token by token."""

import pytest
import torch

from tests.support.layer_tokens import grid_layout
from tests.support.visual_tokens import random_tokens
from tops_engine.methods import VisualTokens
from tops_engine.methods.hiprune import HiPrune

ROWS, COLUMNS = 8, 6


def in_order(seed: int) -> VisualTokens:
    """Return the tokens of one tile of ROWS x COLUMNS patches, row by row."""
    image = random_tokens([ROWS * COLUMNS], seed=seed)
    return VisualTokens(**vars(image) | {"layout": grid_layout(ROWS, COLUMNS)})


@pytest.mark.parametrize(("num_keep", "share", "num_anchors"), [(1, 0.1, 0), (30, 0.5, 3), (25, 0.1, 0), (40, 0.4, 3)])
def test_anchors_buffers_and_registers(num_keep: int, share: float, num_anchors: int) -> None:
    image = in_order(num_keep)
    middle, deep = image.middle_attention().tolist(), image.received_attention().tolist()
    anchors = sorted(range(ROWS * COLUMNS), key=lambda token: -middle[token])[:num_anchors]
    kept = set(anchors)
    for anchor in anchors:
        row, column = divmod(anchor, COLUMNS)
        for y, x in [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]:
            if 0 <= y < ROWS and 0 <= x < COLUMNS:
                kept.add(y * COLUMNS + x)
    others = sorted(set(range(ROWS * COLUMNS)) - kept, key=lambda token: -deep[token])
    (selection,) = HiPrune(anchors=share).select_visual([image], [num_keep])
    assert set(selection.indices.tolist()) == kept | set(others[: num_keep - len(kept)])


def test_without_anchors_it_is_the_attention_of_the_deep_layer() -> None:
    image = in_order(0)
    (selection,) = HiPrune(anchors=0.0).select_visual([image], [9])
    assert selection.indices.tolist() == image.received_attention().topk(9).indices.sort().values.tolist()


def test_a_budget_below_the_neighbours_keeps_the_anchor_and_the_most_attended_neighbours() -> None:
    image = in_order(1)
    middle, deep = torch.zeros(48), torch.arange(48.0)
    middle[20] = 1
    image = VisualTokens(**vars(image) | {"middle_attention": lambda: middle, "received_attention": lambda: deep})
    (selection,) = HiPrune(anchors=1.0).select_visual([image], [3])
    assert selection.indices.tolist() == [20, 21, 26]

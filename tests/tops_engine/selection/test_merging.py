"""Compare merging with sums written out token by token."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.support.visual_tokens import cosine
from tops_engine.selection import fold_dropped, merge_into_targets, merge_neighbours, pool_grid, pooled_rows


@pytest.mark.parametrize(("n", "num_targets"), [(9, 3), (10, 3), (7, 7), (5, 1), (6, 4), (4, 0)])
def test_tokens_join_the_target_with_the_most_similar_key(n: int, num_targets: int) -> None:
    torch.manual_seed(n)
    features, keys = torch.randn(n, 3), torch.randn(n, 4)
    targets, merged = merge_into_targets(features, keys, num_targets)
    step = n // num_targets if num_targets else 0
    assert targets.tolist() == [index * step for index in range(num_targets)]
    members: dict[int, list[int]] = {int(target): [] for target in targets}
    for token in range(n):
        if num_targets and token not in members:
            members[max(members, key=lambda target: cosine(keys[token], keys[target]))].append(token)
    for target, row in zip(targets.tolist(), merged, strict=True):
        expected = features[target].clone()
        if members[target]:
            expected += features[members[target]].mean(dim=0)
        torch.testing.assert_close(row, expected)


def test_identical_tokens_merge_to_twice_themselves() -> None:
    feature = torch.tensor([1.0, -2.0, 3.0])
    _, merged = merge_into_targets(feature.repeat(8, 1), torch.ones(8, 2), 2)
    # Equal keys are a tie: all join the first target.
    assert merged.tolist() == [(2 * feature).tolist(), feature.tolist()]


@pytest.mark.parametrize(("n", "num_neighbours"), [(12, 4), (12, 11), (12, 40), (2, 32)])
def test_neighbours_are_added_with_their_weights(n: int, num_neighbours: int) -> None:
    torch.manual_seed(n)
    features, keys, weights = torch.randn(n, 3), torch.randn(n, 4), torch.rand(n)
    tokens = torch.tensor([1, 0]) if n == 2 else torch.tensor([7, 2, 3])
    merged = merge_neighbours(features, keys, weights, tokens, num_neighbours)
    for token, row in zip(tokens.tolist(), merged, strict=True):
        rest = [index for index in range(n) if index != token]
        nearest = sorted(rest, key=lambda index: -cosine(keys[token], keys[index]))[:num_neighbours]
        expected = features[token] + sum((weights[index] * features[index] for index in nearest), torch.zeros(3))
        torch.testing.assert_close(row, expected)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (576, [24] * 24), (144, [12] * 12), (192, [16] * 12), (128, [16] * 8), (64, [8] * 8), (32, [8] * 4), (1, [1]),
        # 127 is prime, and 2 x 23 would be cells twelve times as high as wide: rows differ by one cell.
        (127, [11, 12, 11, 12, 11, 12, 11, 12, 11, 12, 12]), (46, [6, 7, 6, 7, 6, 7, 7]),
    ],
)  # fmt: skip
def test_pooled_grids_of_24_by_24(count: int, expected: list[int]) -> None:
    assert sum(pooled_rows(24, 24, count)) == count
    assert sorted(pooled_rows(24, 24, count)) == sorted(expected)


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_every_number_of_cells_can_be_met(rows: int, columns: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, rows * columns))
    cells = pooled_rows(rows, columns, count)
    assert sum(cells) == count
    assert len(cells) <= rows
    assert 1 <= min(cells) <= max(cells) <= columns
    assert max(cells) - min(cells) <= 1
    grid = torch.rand(rows, columns, 2)
    pooled, middles = pool_grid(grid, cells)
    assert pooled.shape == (count, 2)
    assert middles.tolist() == sorted(set(middles.tolist()))
    assert 0 <= middles[0] <= middles[-1] < rows * columns
    index = 0
    for row, number in enumerate(cells):
        top, bottom = row * rows // len(cells), math.ceil((row + 1) * rows / len(cells))
        for column in range(number):
            left, right = column * columns // number, math.ceil((column + 1) * columns / number)
            window = grid[top:bottom, left:right]
            torch.testing.assert_close(pooled[index], window.mean(dim=(0, 1)))
            assert top <= middles[index] // columns < bottom
            assert left <= middles[index] % columns < right
            index += 1


def test_rectangles_are_adaptive_pooling() -> None:
    grid = torch.randn(24, 24, 3)
    for count, (height, width) in {128: (8, 16), 144: (12, 12), 32: (4, 8)}.items():
        pooled, _ = pool_grid(grid, pooled_rows(24, 24, count))
        expected = F.adaptive_avg_pool2d(grid.permute(2, 0, 1), (height, width)).flatten(1).T
        torch.testing.assert_close(pooled, expected)


def test_as_many_cells_as_tokens_change_nothing() -> None:
    grid = torch.randn(5, 7, 3)
    pooled, middles = pool_grid(grid, pooled_rows(5, 7, 35))
    assert middles.tolist() == list(range(35))
    torch.testing.assert_close(pooled, grid.flatten(0, 1))


@given(st.integers(2, 12), st.data())
def test_dropped_tokens_are_averaged_with_the_most_similar_kept_one(n: int, data: st.DataObject) -> None:
    features = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
    shown = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    kept = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n)))
    own = features[kept] + 1
    folded = fold_dropped(features, shown, torch.tensor(kept), own)
    patches = [token for token in kept if shown[token]]
    groups = {token: [own[place]] for place, token in enumerate(kept)}
    for token in range(n):
        if token not in kept and shown[token] and patches:
            groups[max(patches, key=lambda target: cosine(features[token], features[target]))].append(features[token])
    torch.testing.assert_close(folded, torch.stack([torch.stack(groups[token]).mean(dim=0) for token in kept]))
    if len(kept) == n:
        assert torch.equal(folded, own)

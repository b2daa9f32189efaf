"""Compare VScan with the method written out token by token."""

import pytest
import torch

from tests.support.layer_tokens import grid_layout, layer_tokens
from tests.support.visual_tokens import cosine, random_tokens
from tops_engine import selection
from tops_engine.budget import layer_average
from tops_engine.media.layout import grid_boxes
from tops_engine.methods import VisualTokens
from tops_engine.methods.vscan import VScan
from tops_engine.settings import Pruning

ROWS, COLUMNS = 8, 6


def tile(seed: int) -> VisualTokens:
    """Return the tokens of one tile of ROWS x COLUMNS patches, row by row."""
    image = random_tokens([ROWS * COLUMNS], seed=seed)
    return VisualTokens(**vars(image) | {"layout": grid_layout(ROWS, COLUMNS)})


@pytest.mark.parametrize("num_keep", [1, 8, 24, 30, 47])
def test_a_local_scan_a_global_scan_and_the_mean_of_what_joins(num_keep: int) -> None:
    image = tile(num_keep)
    shallow, deep = image.shallow_attention().tolist(), image.vision_attention().tolist()
    # 2 x 2 windows, of which the lower ones have two more rows.
    windows = {token: (min(token // COLUMNS // 3, 1), token % COLUMNS // 3) for token in range(ROWS * COLUMNS)}
    local: list[int] = []
    for token in sorted(windows, key=lambda token: -shallow[token]):
        of_window = sum(windows[other] == windows[token] for other in local)
        if len(local) < num_keep // 2 and of_window < -(-(num_keep // 2) // 4):
            local.append(token)
    rest = sorted(set(windows) - set(local), key=lambda token: -deep[token])
    kept = sorted(local + rest[: num_keep - len(local)])
    joined: dict[int, list[int]] = {token: [token] for token in kept}
    for token in set(windows) - set(kept):
        joined[max(kept, key=lambda place: cosine(image.features[token], image.features[place]))].append(token)
    (chosen,) = VScan(window=3).select_visual([image], [num_keep])
    assert chosen.indices.tolist() == kept
    expected = torch.stack([image.features[joined[token]].mean(dim=0) for token in kept])
    torch.testing.assert_close(chosen.features, expected)


def test_tiles_are_scanned_and_merged_by_themselves() -> None:
    image = random_tokens([20, 12], newlines=3, seed=1)
    (chosen,) = VScan().select_visual([image], [16])
    tiles = image.tiles()[chosen.indices].tolist()
    assert (tiles.count(1), tiles.count(2)) == (10, 6)
    for number in (1, 2):
        mine = image.tiles() == number
        kept = torch.tensor([number == own for own in tiles])
        assert chosen.features is not None
        # Each tile's tokens are averages of tokens of that tile alone.
        weights = torch.linalg.lstsq(image.features[mine].T, chosen.features[kept].T).solution
        torch.testing.assert_close(image.features[mine].T @ weights, chosen.features[kept].T, atol=1e-4, rtol=1e-4)


def test_windows_that_cannot_be_filled_leave_their_places_to_others() -> None:
    scores = torch.arange(9.0)
    # Windows of 2 x 2 in 3 x 3 tokens: only one fits.
    assert selection.window_select(scores, grid_boxes(3, 3), 4, 2).tolist() == [8, 7, 6, 5]
    # Four windows of 2 x 2, of which none gives more than two.
    chosen = selection.window_select(torch.arange(16.0), grid_boxes(4, 4), 6, 2)
    assert sorted(chosen.tolist()) == [6, 7, 12, 13, 14, 15]


def test_the_second_stage_goes_by_the_last_token_and_meets_the_budget_of_the_scripts() -> None:
    row = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    image = layer_tokens(grid_layout(2, 2), attention={("last", "next", "mean"): row})
    (chosen,) = VScan().select_at_layer([image], [2])
    assert chosen.indices.tolist() == [1, 3]
    stages = Pruning(method="vscan", keep=64).stages(576, 32)
    assert stages == ((0, 96), (16, 32))
    assert layer_average(stages, 576, 32) == 64

"""Compare ReverseFastV and WindowFastV with their definitions written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import Picture
from tests.support.layer_tokens import grid_layout, layer_tokens
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.methods.fastv import FastV
from tops_engine.methods.fastv_reverse import FastVReverse
from tops_engine.methods.fastv_window import FastVWindow, window_of_token
from tops_engine.settings import Generation, Pruning

LAST_ROW = ("last", "previous", "mean")

# Few distinct values, so that ties are common.
SCORES = st.lists(st.integers(0, 5), min_size=12, max_size=12).map(lambda values: torch.tensor(values) / 8.0)


def chosen(method: FastV, scores: Tensor, layout: VisualLayout, count: int, kept: Tensor | None = None) -> list[int]:
    image = layer_tokens(layout, kept, attention={LAST_ROW: scores[None]})
    (selection,) = method.select_at_layer([image], [count])
    assert selection.indices.tolist() == sorted(set(selection.indices.tolist()))
    assert selection.order is not None
    assert sorted(selection.order.tolist()) == selection.indices.tolist()
    return selection.indices.tolist()


@given(SCORES, st.integers(1, 12))
def test_fastv_and_its_reverse_take_the_ends_of_one_ranking(scores: Tensor, count: int) -> None:
    layout, values = grid_layout(3, 4), scores.tolist()
    highest = sorted(range(12), key=lambda token: (-values[token], token))[:count]
    lowest = sorted(range(12), key=lambda token: (values[token], token))[:count]
    mirrored = sorted(range(12), key=lambda token: (-values[11 - token], token))[:count]

    assert chosen(FastV(), scores, layout, count) == sorted(highest)
    assert chosen(FastVReverse(), scores, layout, count) == sorted(lowest)
    assert chosen(FastVReverse(reverse="places"), scores, layout, count) == sorted(mirrored)


def plain_windows(scores: list[float], windows: list[int], count: int) -> list[int]:
    """Keep the same share of each window; the remainder goes to the best next tokens, one a window."""
    taken: list[int] = []
    following: list[int] = []
    for window in sorted(set(windows)):
        tokens = [token for token, where in enumerate(windows) if where == window]
        tokens.sort(key=lambda token: (-scores[token], token))
        quota = math.floor(count * len(tokens) / len(windows))
        taken += tokens[:quota]
        following += tokens[quota : quota + 1]
    following.sort(key=lambda token: (-scores[token], token))
    return sorted(taken + following[: count - len(taken)])


@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.booleans(),
)
def test_windows_share_the_budget(rows: int, columns: int, side: int, seed: int, share: float, ties: bool) -> None:
    num_tokens = rows * columns
    count = max(1, round(share * num_tokens))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_tokens, generator=generator)
    scores = (3 * scores).floor() if ties else scores
    windows = [(row // side) * 100 + column // side for row in range(rows) for column in range(columns)]

    kept = chosen(FastVWindow(window=side), scores, grid_layout(rows, columns), count)

    assert kept == plain_windows(scores.tolist(), windows, count)
    assert len(kept) == count


def test_windows_of_tokens_that_remain_of_an_earlier_stage() -> None:
    kept = torch.tensor([0, 1, 3, 5, 8, 10, 11, 15])
    scores = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.5, 0.4, 0.3, 0.2])
    windows = [(token // 4 // 2) * 2 + token % 4 // 2 for token in kept.tolist()]

    places = chosen(FastVWindow(window=2), scores, grid_layout(4, 4), 5, kept)

    assert places == plain_windows(scores.tolist(), windows, 5)


def test_equal_scores_keep_a_lattice() -> None:
    kept = chosen(FastVWindow(window=2), torch.ones(16), grid_layout(4, 4), 4)
    assert kept == [0, 2, 8, 10]


def test_views_and_row_ends_have_their_own_windows() -> None:
    """Use an overview of 2 x 2 and tiles of 2 x 3 with a newline token after each row."""
    tiles = torch.zeros(8, 4)
    tiles[[0, 1, 2, 4, 5, 6]] = grid_boxes(2, 3)
    view = torch.tensor([0] * 4 + [1] * 8)
    layout = VisualLayout(torch.cat([grid_boxes(2, 2), tiles]), view, ((2, 2), (2, 3)))

    assert window_of_token(layout, 2).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 1, 1, 2, 2]
    assert window_of_token(layout, 1).tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 9]


def test_windows_end_with_their_frame() -> None:
    frames = frame_layout(2, grid_boxes(3, 2), (3, 2))
    assert window_of_token(frames, 2).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("method", ["fastv_reverse", "fastv_window"])
def test_variants_use_fastvs_score_in_the_engine(llava_next_engine: Engine, picture: Picture, method: str) -> None:
    messages = [user_message("What?", picture(90, 60))]
    llava_next_engine.forget()
    answers = {
        name: llava_next_engine.chat(messages, Pruning(method=name, keep=0.5), Generation(max_tokens=1))
        for name in ("fastv", method)
    }
    kept = {name: answer.token_map.stages[-1][1][0].tolist() for name, answer in answers.items()}
    assert len(kept["fastv"]) == len(kept[method])
    assert kept["fastv"] != kept[method]
    if method == "fastv_reverse":
        assert not set(kept["fastv"]) & set(kept[method])
    assert answers["fastv"].flops.selection == answers[method].flops.selection > 0

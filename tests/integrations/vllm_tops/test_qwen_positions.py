"""Test the positions of pruned Qwen-VL prompts; vLLM itself is not needed."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm_tops.qwen_positions import NUM_COORDINATES, Kept, pack, pruned_positions, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_coordinates_survive_beside_tokens_of_any_precision(dtype: torch.dtype) -> None:
    numbers = torch.tensor([0, 1, 255, 256, 257, 1800, 65535])
    rows, columns = torch.cartesian_prod(numbers, numbers).T
    tokens = torch.randn(len(rows), 3).to(dtype)
    packed = pack(tokens, rows, columns)
    assert packed.dtype == dtype
    assert packed.shape[1] == 3 + NUM_COORDINATES
    again, coordinates = unpack(packed)
    assert torch.equal(again, tokens)
    assert torch.equal(coordinates, torch.stack([rows, columns]))


def test_nothing_travels_beside_no_tokens() -> None:
    nowhere = torch.zeros(0, dtype=torch.int64)
    tokens, coordinates = unpack(pack(torch.zeros(0, 3), nowhere, nowhere))
    assert tokens.shape == (0, 3)
    assert coordinates.shape == (2, 0)


#: Parts of a prompt: a number of text tokens, a picture with its rows, columns and number of kept tokens, or a video.
parts = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.integers(1, 4)),
        st.tuples(st.just("picture"), st.integers(1, 4), st.integers(1, 5), st.randoms(use_true_random=False)),
        st.tuples(st.just("video"), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=5,
)


@given(parts)
def test_kept_tokens_and_text_have_their_positions_in_the_unpruned_prompt(parts: list[tuple[Any, ...]]) -> None:
    whole: list[tuple[int, ...]] = []
    expected: list[list[int]] = []
    added: list[list[int]] = []
    pictures, begin = [], 0
    for kind, *size in parts:
        if kind == "text":
            here = [(begin + step,) * 3 for step in range(size[0])]
        else:
            here = [(begin, begin + row, begin + column) for row in range(size[0]) for column in range(size[1])]
        stay = list(range(len(here)))
        if kind == "picture":
            stay = sorted(size[2].sample(stay, size[2].randint(1, len(here))))
            pictures.append(Kept(len(whole), len(here), len(stay)))
        for index in stay:
            expected.append(list(here[index]))
            added.append([0, *divmod(index, size[1])] if kind == "picture" else [0, 0, 0])
        whole += here
        begin += size[0] if kind == "text" else max(size[:2])
    positions, delta = pruned_positions(torch.tensor(whole).T, pictures)
    assert (positions.T + torch.tensor(added)).tolist() == expected
    assert delta == begin - len(expected)

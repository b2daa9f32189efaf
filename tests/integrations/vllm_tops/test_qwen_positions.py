"""Test the positions of pruned Qwen-VL prompts; vLLM itself is not needed."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm_tops.qwen_positions import NUM_COORDINATES, Kept, pack, pruned_positions, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_coordinates_survive_beside_tokens_of_any_precision(dtype: torch.dtype) -> None:
    numbers = torch.tensor([0, 1, 255, 256, 257, 1800, 65535])
    places = torch.cartesian_prod(numbers, numbers, numbers).T
    tokens = torch.randn(places.shape[1], 3).to(dtype)
    packed = pack(tokens, places)
    assert packed.dtype == dtype
    assert packed.shape[1] == 3 + NUM_COORDINATES
    again, coordinates = unpack(packed)
    assert torch.equal(again, tokens)
    assert torch.equal(coordinates, places)


def test_nothing_travels_beside_no_tokens() -> None:
    tokens, coordinates = unpack(pack(torch.zeros(0, 3), torch.zeros(3, 0, dtype=torch.int64)))
    assert tokens.shape == (0, 3)
    assert coordinates.shape == (3, 0)


#: Parts of a prompt: a number of text tokens, a picture or video with its times, rows and columns of which some tokens
#: are kept, or one that the request contains as embeddings.
parts = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.integers(1, 4)),
        st.tuples(
            st.just("pruned"),
            st.integers(1, 3),
            st.integers(1, 4),
            st.integers(1, 5),
            st.randoms(use_true_random=False),
        ),
        st.tuples(st.just("whole"), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=5,
)


@given(parts)
def test_kept_tokens_and_text_have_their_positions_in_the_unpruned_prompt(parts: list[tuple[Any, ...]]) -> None:
    whole: list[tuple[int, ...]] = []
    expected: list[list[int]] = []
    added: list[list[int]] = []
    visuals, begin = [], 0
    for kind, *size in parts:
        places = [(step,) * 3 for step in range(size[0])] if kind == "text" else list(product(*map(range, size[:3])))
        here = [tuple(begin + step for step in place) for place in places]
        stay = list(range(len(here)))
        if kind == "pruned":
            stay = sorted(size[3].sample(stay, size[3].randint(1, len(here))))
            visuals.append(Kept(len(whole), len(here), len(stay)))
        for index in stay:
            expected.append(list(here[index]))
            added.append(list(places[index]) if kind == "pruned" else [0, 0, 0])
        whole += here
        begin += max(size[:3]) if kind != "text" else size[0]
    positions, delta = pruned_positions(torch.tensor(whole).T, visuals)
    assert (positions.T + torch.tensor(added)).tolist() == expected
    assert delta == begin - len(expected)

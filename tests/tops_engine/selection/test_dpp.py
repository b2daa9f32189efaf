"""Compare the incremental DPP with determinants computed from scratch."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tops_engine.selection import dpp, dpp_select, kernel_dpp_select


@pytest.fixture(params=["_select_on_cpu", "_select_on_device"], scope="module", autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run all tests with the loop for each kind of device, whatever the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpp, "_form_for", lambda _: getattr(dpp, request.param))
        yield


def greedy_log_det(features: Tensor, relevance: Tensor, num_keep: int) -> list[int]:
    """Select by definition: in each step the token that makes the kernel's determinant largest."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    kernel = relevance.double()[:, None] * (unit @ unit.T) * relevance.double()
    chosen: list[int] = []
    for _ in range(num_keep):
        rest = [index for index in range(len(features)) if index not in chosen]
        determinants = [float(torch.logdet(kernel[[*chosen, i]][:, [*chosen, i]])) for i in rest]
        chosen.append(rest[determinants.index(max(determinants))])
    return chosen


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("n", "size", "num_keep"), [(12, 20, 12), (40, 64, 15), (60, 30, 25)])
def test_it_is_the_greedy_log_determinant(n: int, size: int, num_keep: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, size, generator=generator)
    relevance = torch.rand(n, generator=generator) + 0.01
    assert dpp_select(features, relevance, num_keep).tolist() == greedy_log_det(features, relevance, num_keep)


def test_a_kernel_is_selected_from_as_its_similarity_and_relevance() -> None:
    generator = torch.Generator().manual_seed(0)
    features, relevance = torch.randn(40, 64, generator=generator), torch.rand(40, generator=generator) + 0.1
    unit = torch.nn.functional.normalize(features, dim=1)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    assert kernel_dpp_select(kernel, 15).tolist() == greedy_log_det(features, relevance, 15)


def test_relevance_alone_decides_among_orthogonal_tokens() -> None:
    relevance = torch.tensor([0.3, 1e-6, 0.9, 0.5])
    assert dpp_select(torch.eye(4), relevance, 4).tolist() == [2, 3, 0, 1]


def test_a_mixture_of_the_chosen_comes_after_everything_else() -> None:
    a, b, c = torch.eye(3)
    features = torch.stack([a, b, a + b, 0.02 * c + a])
    # Once a and b are chosen, token 2 adds nothing, however relevant; of token 3 a little is left.
    order = dpp_select(features, torch.tensor([1.0, 0.9, 0.8, 0.1]), 4).tolist()
    assert order == [0, 1, 3, 2]


def test_when_nothing_new_is_left_the_most_relevant_follow() -> None:
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [1, 0]])
    relevance = torch.tensor([0.5, 0.6, 0.4, 0.4, 0.2])
    assert dpp_select(features, relevance, 5).tolist() == [1, 2, 0, 3, 4]


@given(st.integers(1, 9), st.data())
def test_ties_go_to_the_lowest_index_and_nothing_is_chosen_twice(n: int, data: st.DataObject) -> None:
    rows = st.sampled_from(list(itertools.product([-1.0, 0.0, 1.0], repeat=2)))
    features = torch.tensor(data.draw(st.lists(rows, min_size=n, max_size=n)))
    num_keep = data.draw(st.integers(1, n))
    order = dpp_select(features, torch.ones(n), num_keep).tolist()
    assert len(set(order)) == num_keep
    unit = torch.nn.functional.normalize(features, dim=1)
    first = next((i for i in range(n) if unit[i].norm() > 0), 0)
    assert order[0] == first


def test_half_precision_features_are_compared_in_single() -> None:
    features = torch.randn(30, 16, generator=torch.Generator().manual_seed(0)).half()
    relevance = torch.linspace(0.1, 1, 30)
    assert dpp_select(features, relevance, 9).tolist() == greedy_log_det(features.float(), relevance, 9)

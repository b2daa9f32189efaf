"""Generators from seeds of 64 bits."""

import pytest
import torch

from tops_engine.device.seeds import seeded


def numbers(seed: int) -> list[float]:
    return torch.rand(8, generator=seeded(seed)).tolist()


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 1])
def test_small_seeds_are_torchs_own(seed: int) -> None:
    assert numbers(seed) == torch.rand(8, generator=torch.Generator().manual_seed(seed)).tolist()


def test_seeds_that_differ_in_any_bit_give_other_numbers() -> None:
    seeds = [1, *(1 + 2**bit for bit in range(1, 64)), 2**64 - 1, 2**63, 2**50]
    drawn = [numbers(seed) for seed in seeds]
    firsts = {row[0] for row in drawn}
    assert len({tuple(row) for row in drawn}) == len(seeds)
    assert len(firsts) == len(seeds), "the first number differs already"
    assert [numbers(seed) for seed in seeds] == drawn


def test_numbers_of_large_seeds_are_uniform() -> None:
    drawn = torch.rand(20_000, generator=seeded(2**50 + 3))
    assert abs(drawn.mean().item() - 0.5) < 0.01
    assert abs(drawn.var().item() - 1 / 12) < 0.005
    assert torch.equal(drawn, torch.rand(20_000, generator=seeded(2**50 + 3)))


def test_without_a_seed_each_generator_is_another() -> None:
    assert torch.rand(4, generator=seeded(None)).tolist() != torch.rand(4, generator=seeded(None)).tolist()

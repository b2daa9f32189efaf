"""Compare OTPrune with the greedy choice by determinants."""

import pytest
import torch

from tests.support.visual_tokens import random_tokens
from tops_engine.methods import VisualTokens
from tops_engine.methods.otprune import OTPrune


@pytest.mark.parametrize("scale", [0.01, 5.0])
def test_each_step_makes_the_determinant_largest(scale: float) -> None:
    image = random_tokens([18], newlines=2, seed=1)
    features = image.features.double()
    unit = features / features.square().sum(dim=0).sqrt()
    kernel = torch.eye(20, dtype=torch.float64) + scale * (unit @ unit.T) @ (unit @ unit.T).T
    expected: list[int] = []
    for _ in range(8):
        left = [token for token in range(20) if token not in expected]
        expected.append(max(left, key=lambda token: float(kernel[[*expected, token]][:, [*expected, token]].det())))
    (selection,) = OTPrune(kernel_weight=scale).select_visual([image], [8])
    assert selection.order is not None
    assert selection.order.tolist() == expected


def test_equal_tokens_are_chosen_from_the_first_on() -> None:
    image = random_tokens([9])
    image = VisualTokens(**vars(image) | {"features": torch.ones(9, 4)})
    (selection,) = OTPrune().select_visual([image], [3])
    assert selection.indices.tolist() == [0, 1, 2]

"""Test that cosine similarity equals float64's for every dtype and magnitude."""

import pytest
import torch

from tops_engine.selection import cosine_similarity


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 6e3])
def test_as_defined(dtype: torch.dtype, scale: float) -> None:
    features = (torch.randn(2, 40, 256, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    exact = features.double()
    length = exact.norm(dim=-1)
    expected = exact @ exact.mT / (length[:, :, None] * length[:, None, :])
    similarity = cosine_similarity(features)
    assert similarity.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (similarity - expected).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e38, 1e-38])
def test_neither_large_nor_small_numbers_nor_zero_give_nan(dtype: torch.dtype, size: float) -> None:
    features = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [0.0, 0.0], [2.0, 2.0]]])
    expected = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1.0]])
    assert torch.allclose(cosine_similarity((features * size).to(dtype))[0], expected, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_on_a_gpu_lose_nothing(dtype: torch.dtype) -> None:
    features = torch.randn(1, 2880, 4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    there = cosine_similarity(features.cuda()).cpu()
    assert (there - cosine_similarity(features)).abs().max() < 5e-7

"""OTPrune: github.com/xiwenc1/OTPrune, LlavaMetaForCausalLM.OTPrune of LLaVA."""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.official.comparison import NUM_TOKENS, compare, function_of, square_tokens
from tops_engine.methods.otprune import OTPrune

FILE = "LLaVA/llava/model/llava_arch.py"


def inputs(seed: int) -> Tensor:
    """Return projected tokens."""
    return torch.randn(NUM_TOKENS, 96, generator=torch.Generator().manual_seed(seed))


def official(checkout: Path, seed: int, count: int) -> list[int]:
    greedy = function_of(checkout, FILE, "greedy_select")
    choose = function_of(checkout, FILE, "LlavaMetaForCausalLM.OTPrune", greedy_select=greedy)
    kept: list[int] = choose(None, inputs(seed), NUM_TOKENS, None, threshold_ratio=count / NUM_TOKENS)[0].tolist()
    return kept


def ours(seed: int, count: int) -> list[int]:
    (selection,) = OTPrune().select_visual([square_tokens(inputs(seed))], [count])
    kept: list[int] = selection.indices.tolist()
    return kept


if __name__ == "__main__":
    compare(__doc__, official, ours)

"""VScan: github.com/Tencent/SelfEvolvingAgent, folder VScan, LlavaMetaForCausalLM.encode_images of LLaVA.

The second stage is the most attention from the last token, as in PyramidDrop's code, on which the official code builds.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.official.comparison import NUM_TOKENS, compare, function_of, model_with, square_tokens
from tops_engine.methods import VisualTokens
from tops_engine.methods.vscan import VScan

FILE = "VScan/llava/model/llava_arch.py"


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    """Return vision features [1, n, 8], and for each of 24 layers the attention of [CLS]: [24, 1, 2 heads, n]."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, NUM_TOKENS, 8, generator=generator)
    return features, torch.randn(24, 1, 2, NUM_TOKENS, generator=generator).softmax(dim=-1)


def run(checkout: Path, seed: int, count: int) -> tuple[list[int], Tensor]:
    """Return what the official code keeps, and the features that it puts there."""
    features, attentions = inputs(seed)
    model = model_with(features, attentions, get_visual_token_num=count)
    for name in ("window_cls_selection", "token_merging"):
        function = function_of(checkout, FILE, f"LlavaMetaForCausalLM.{name}")
        setattr(model, name, partial(function, model))
    merged, mask, _ = function_of(checkout, FILE, "LlavaMetaForCausalLM.encode_images")(model, None)
    kept: list[int] = mask[0].nonzero().flatten().tolist()
    return kept, merged[0, mask[0]]


def official(checkout: Path, seed: int, count: int) -> list[int]:
    kept, merged = run(checkout, seed, count)
    selection = VScan().select_visual([tokens(seed)], [count])[0]
    if selection.indices.tolist() == kept:
        assert selection.features is not None
        torch.testing.assert_close(selection.features, merged, atol=1e-5, rtol=1e-5)
    return kept


def tokens(seed: int) -> VisualTokens:
    features, attentions = inputs(seed)
    mean = attentions[:, 0].mean(dim=1)
    return square_tokens(features[0], vision_attention=mean[-2], shallow_attention=mean[5])


def ours(seed: int, count: int) -> list[int]:
    (selection,) = VScan().select_visual([tokens(seed)], [count])
    kept: list[int] = selection.indices.tolist()
    return kept


if __name__ == "__main__":
    compare(__doc__, official, ours)

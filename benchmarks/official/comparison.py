"""What the comparisons with official code share."""

import argparse
import ast
import math
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.methods import VisualTokens

NUM_TOKENS = 576
BUDGETS = (192, 128, 64, 32)
SEEDS = range(5)


def function_of(checkout: Path, file: str, name: str, **names: Any) -> Callable[..., Any]:
    """Return a function of a checkout without importing its module, whose other imports need not be installed.

    Parameters
    ----------
    name : of the function; a class comes before it with a dot.
    names : what the function reads from its module, besides torch.
    """
    body: Sequence[ast.stmt] = ast.parse((checkout / file).read_text()).body
    *classes, function = name.split(".")
    for one in classes:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == one)
    node = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == function)
    found: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, "math": math, **names}
    exec(compile(ast.Module([node], []), file, "exec"), found)
    result: Callable[..., Any] = found[function]
    return result


def model_with(features: Tensor, attentions: Any, **methods: Any) -> Any:
    """Return an object with the methods of LLaVA's model that official code calls; its projector changes nothing."""

    def tower(*_: object, **_options: object) -> tuple[Tensor, Any]:
        return features, attentions

    model = types.SimpleNamespace(get_vision_tower=lambda: tower, mm_projector=lambda rows: rows)
    return types.SimpleNamespace(
        get_model=lambda: model, **{name: lambda value=value: value for name, value in methods.items()}
    )


def square_tokens(features: Tensor, **signals: Tensor) -> VisualTokens:
    """Return the tokens [n, d] of a square picture of one tile, with signals by name."""
    side = math.isqrt(len(features))
    layout = VisualLayout(grid_boxes(side, side), torch.zeros(len(features)).long(), ((side, side),))
    given = {
        "encoder_features": features,
        "vision_attention": torch.ones(len(features)),
        "tiles": torch.ones(len(features)).long(),
        **signals,
    }
    lazy: dict[str, Any] = {name: lambda value=value: value for name, value in given.items()}
    return VisualTokens(features, layout, **lazy)


def compare(
    description: str | None,
    official: Callable[[Path, int, int], Sequence[int]],
    ours: Callable[[int, int], Sequence[int]],
    budgets: Sequence[int] = BUDGETS,
) -> None:
    """Print for each budget how many kept tokens differ, summed over the seeds.

    Parameters
    ----------
    official, ours : return the kept tokens for a seed and a number of tokens.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("checkout", type=Path, help="folder of the official repository")
    checkout = parser.parse_args().checkout
    print(f"| kept of {NUM_TOKENS} | differing, of {len(SEEDS)} random pictures |\n| --- | --- |")
    for count in budgets:
        differing = 0
        for seed in SEEDS:
            theirs, kept = set(official(checkout, seed, count)), set(ours(seed, count))
            differing += len(theirs - kept) + max(0, len(kept) - len(theirs))
        print(f"| {count} | {differing} of {count * len(SEEDS)} |")

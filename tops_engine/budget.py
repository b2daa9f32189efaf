"""From ``keep`` to the number of visual tokens at each stage.

The budget is the *layer-average number of visual tokens* of an image: the mean, over all decoder layers, of how many of
its tokens that layer sees. It is what FLOPs and KV memory follow, and what makes methods that prune at different depths
comparable. TOPS (arXiv 2606.27161) states its budgets this way, but some rows of its tables 9 and 10 do not average
what they claim; they are kept here as presets that report their true average.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from tops_engine.errors import BudgetError

Keep = float | int


class Stage(NamedTuple):
    """From decoder layer ``layer`` on, ``num_tokens`` visual tokens of an image remain (layer 0: before the LLM)."""

    layer: int
    num_tokens: int


class Preset(NamedTuple):
    """One row of the paper's tables 9 and 10, with the weights it was run with."""

    stages: tuple[Stage, ...]
    num_layers: int
    num_visual_tokens: int
    alpha: float
    lambda_: float

    @property
    def layer_average(self) -> float:
        return layer_average(self.stages, self.num_visual_tokens, self.num_layers)


# The default shape of TOPS, as (fraction of the layers, multiple of the budget): 2T before the LLM, T/2 from 3/8 of
# the layers, T/4 from 3/4 of them, which averages T.
TOPS_SHAPE = ((0.0, 2.0), (3 / 8, 0.5), (3 / 4, 0.25))


def target_tokens(keep: Keep, num_visual_tokens: int) -> float:
    """The layer-average number of tokens that ``keep`` asks of an image of ``num_visual_tokens``.

    Raises
    ------
    BudgetError
        If that is less than one token.
    """
    target = min(keep, num_visual_tokens) if isinstance(keep, int) else keep * num_visual_tokens
    if target < 1:
        raise BudgetError(
            f"keep={keep} leaves less than one of {num_visual_tokens} visual tokens; "
            f"use at least {math.ceil(1e4 / num_visual_tokens) / 1e4}."
        )
    return float(min(target, num_visual_tokens))


def stages_for(
    keep: Keep, num_visual_tokens: int, num_layers: int, shape: Sequence[tuple[float, float]] = TOPS_SHAPE
) -> tuple[Stage, ...]:
    """Token counts whose layer-average meets ``keep`` as nearly as whole tokens allow.

    Parameters
    ----------
    keep : fraction of the visual tokens (float), or number of tokens (int), as a layer-average.
    num_visual_tokens, num_layers : of the image and of the language model.
    shape : (fraction of the layers where a stage starts, relative size of the stage), first one at 0.

    Each count is the stage's relative size times one common factor, bounded to [1, num_visual_tokens]; a bound that is
    hit is made up for by the other stages.
    """
    target = target_tokens(keep, num_visual_tokens)
    starts = [round(fraction * num_layers) for fraction, _ in shape]
    ends = [*starts[1:], num_layers]
    spans = [
        (start, end - start, size) for (_, size), start, end in zip(shape, starts, ends, strict=True) if end > start
    ]

    def counts_at(factor: float) -> list[float]:
        return [min(max(factor * size, 1.0), float(num_visual_tokens)) for _, _, size in spans]

    def average(counts: Sequence[float]) -> float:
        return sum(count * length for count, (_, length, _) in zip(counts, spans, strict=True)) / num_layers

    low, high = 0.0, num_visual_tokens / min(size for _, _, size in spans)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if average(counts_at(middle)) < target else (low, middle)
    exact = counts_at(high)
    roundings = itertools.product(*({math.floor(count + 1e-9), math.ceil(count - 1e-9)} for count in exact))
    best = min(
        (counts for counts in roundings if list(counts) == sorted(counts, reverse=True)),
        key=lambda counts: (abs(average(counts) - target), counts),
    )
    return tuple(Stage(start, count) for (start, _, _), count in zip(spans, best, strict=True))


def stages_after(keep: Keep, num_visual_tokens: int, num_layers: int, layer: int) -> tuple[Stage, ...]:
    """All tokens up to ``layer``, then as many as the layer-average leaves: for methods that prune once, inside.

    Raises
    ------
    BudgetError
        If the layers before ``layer`` alone cost more than ``keep``, or the model has no such layer.
    """
    if not 1 <= layer < num_layers:
        raise BudgetError(f"Pruning at layer {layer} is not possible in a model of {num_layers} layers.")
    target = target_tokens(keep, num_visual_tokens)
    count = round((target * num_layers - layer * num_visual_tokens) / (num_layers - layer))
    if count < 1:
        least = (layer * num_visual_tokens + num_layers - layer) / num_layers / num_visual_tokens
        raise BudgetError(
            f"keep={keep} cannot be met by pruning at layer {layer} of {num_layers}, which sees all "
            f"{num_visual_tokens} visual tokens in the layers before; use at least {math.ceil(1e4 * least) / 1e4:g}."
        )
    return (Stage(0, num_visual_tokens), Stage(layer, count))


def tokens_per_layer(stages: Sequence[Stage], num_visual_tokens: int, num_layers: int) -> list[int]:
    """How many of an image's visual tokens each decoder layer sees; stages never add tokens."""
    counts, current = [], num_visual_tokens
    remaining = {stage.layer: stage.num_tokens for stage in stages}
    for layer in range(num_layers):
        current = min(current, remaining.get(layer, current))
        counts.append(current)
    return counts


def layer_average(stages: Sequence[Stage], num_visual_tokens: int, num_layers: int) -> float:
    """The mean of :func:`tokens_per_layer`."""
    return sum(tokens_per_layer(stages, num_visual_tokens, num_layers)) / num_layers


def _preset(
    counts: tuple[int, int, int], layers: tuple[int, int], model: tuple[int, int], weights: tuple[float, float]
) -> Preset:
    stages = tuple(Stage(layer, count) for layer, count in zip((0, *layers), counts, strict=True))
    return Preset(stages, *model, *weights)


def _presets() -> dict[str, Preset]:
    llava_1_5 = {128: (256, 128, 32), 64: (128, 64, 16), 32: (64, 32, 8)}
    llava_next = {640: (1280, 640, 160), 320: (640, 320, 80), 160: (320, 160, 40)}
    qwen_and_internvl = {256: (512, 281, 77), 128: (256, 139, 39), 64: (128, 71, 19)}
    rows: list[tuple[str, dict[int, tuple[int, int, int]], tuple[int, int], tuple[int, int], list[tuple[float, float]]]]
    rows = [
        ("llava-1.5-7b", llava_1_5, (12, 24), (32, 576), [(0.5, 0.5), (0.5, 1.0), (0.5, 1.0)]),
        ("llava-1.5-13b", llava_1_5, (15, 30), (40, 576), [(0.5, 0.4)] * 3),
        ("llava-next-7b", llava_next, (12, 24), (32, 2880), [(0.5, 0.5), (0.5, 0.4), (0.5, 0.5)]),
        ("llava-next-13b", llava_next, (15, 30), (40, 2880), [(0.5, 0.5)] * 3),
        ("qwen2.5-vl-7b", qwen_and_internvl, (12, 16), (28, 1296), [(0.5, 0.4)] * 3),
        ("internvl3-8b", qwen_and_internvl, (12, 16), (28, 1280), [(0.2, 0.2), (0.3, 0.2), (0.3, 0.2)]),
    ]
    presets = {
        f"{model}/{budget}": _preset(counts, layers, size, pair)
        for model, table, layers, size, weights in rows
        for (budget, counts), pair in zip(table.items(), weights, strict=True)
    }
    # Table 17 gives other counts for this run than table 9; only these average 128.
    presets["llava-1.5-7b/128-table17"] = _preset((256, 64, 32), (12, 24), (32, 576), (0.5, 0.5))
    return presets


PRESETS: dict[str, Preset] = _presets()

"""From ``keep`` to the number of visual tokens at each stage.

The budget is the *layer-average number of visual tokens* of an image: the mean, over all decoder layers, of how many of
its tokens that layer sees. FLOPs and KV memory are proportional to it, so that methods that prune at different depths
can be compared at equal budgets. The schedules that papers ran are presets of their methods, in ``methods/``.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from tops_engine.errors import BudgetError, shorten

Keep = float | int

#: How a budget is divided among pictures, whether it is one of each picture or of the whole prompt, and which pictures
#: it is the mean of.
Allocation = Literal["fixed", "coverage", "erank", "spectral"]
BudgetPer = Literal["picture", "prompt"]
MeanOver = Literal["batch", "stream"]


class Stage(NamedTuple):
    """From decoder layer ``layer`` on, ``num_tokens`` visual tokens of an image remain; layer 0 is before the LLM."""

    layer: int
    num_tokens: int


class Preset(NamedTuple):
    """Published stages.

    Attributes
    ----------
    stages : as they were run.
    num_layers, num_visual_tokens : of the model and of the picture that they were run on.
    options : of the method, as it was run. Other methods take those that they have.
    proportional : whether the source gives fractions, so that counts follow the size of the picture.
    rounds : whether the code of the source rounds the counts of other sizes to the nearest number instead of down.
    for_every_method : whether the stages are a budget that other methods can run for comparison, if they prune at the
        same places. The counts of other presets hold only together with the rule of their own method.
    """

    stages: tuple[Stage, ...]
    num_layers: int
    num_visual_tokens: int
    options: Mapping[str, Any] = MappingProxyType({})
    proportional: bool = False
    rounds: bool = False
    for_every_method: bool = False

    @property
    def layer_average(self) -> float:
        return layer_average(self.stages, self.num_visual_tokens, self.num_layers)

    def stages_of(self, num_visual_tokens: int) -> tuple[Stage, ...]:
        """Return the stages for a picture of another size."""
        if not self.proportional:
            return self.stages
        share = num_visual_tokens / self.num_visual_tokens
        counts = [round(count * share) if self.rounds else int(count * share + 1e-9) for _, count in self.stages]
        return tuple(Stage(layer, max(1, count)) for (layer, _), count in zip(self.stages, counts, strict=True))


def read_keep(value: object) -> Keep:
    """Return a budget as users write it, also as text: a fraction up to 1.0, or a number of tokens from 2.

    Raises
    ------
    ValueError
        If it is neither.
    """
    rule = "give a fraction above 0 and up to 1.0, or a whole number of tokens from 2"
    if isinstance(value, str):
        try:
            value = float(value) if "." in value or "e" in value.lower() else int(value)
        except ValueError:
            raise ValueError(rule) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(rule)
    if isinstance(value, int) and value == 1:
        raise ValueError("1 could mean one token or all of them; write 1.0 for all, or a small fraction")
    if isinstance(value, int):
        if value < 2:
            raise ValueError(rule)
    elif math.isnan(value) or not 0 < value <= 1:
        raise ValueError(rule)
    return value


def read_budgets(value: object) -> Keep | tuple[Keep, ...]:
    """Return one budget, or the rising budgets of a cascade: a tuple or list, or ``0.111+0.5`` as text.

    Raises
    ------
    ValueError
        If one of them is no budget (:func:`read_keep`), or they do not rise.
    """
    parts = value.split("+") if isinstance(value, str) and "+" in value else value
    if not isinstance(parts, list | tuple) or len(parts) < 2:
        return read_keep(value)
    keeps = tuple(read_keep(part.strip() if isinstance(part, str) else part) for part in parts)
    for smaller, larger in itertools.pairwise(keeps):
        # A fraction and a number of tokens can be compared only when the picture is known, but 1.0 is everything.
        if larger == 1.0 and smaller != 1.0:
            continue
        if type(smaller) is not type(larger):
            raise ValueError("give all budgets of a cascade as fractions or all as numbers of tokens; 1.0 may be last")
        if larger <= smaller:
            raise ValueError(
                f"the budgets of a cascade have to rise, and {larger} comes after {smaller}; "
                f"write {shorten(budgets_text(tuple(sorted(set(keeps)))))}"
            )
    return keeps


def budgets_text(keep: Keep | tuple[Keep, ...]) -> str:
    """Return budgets as text: ``0.222``, or ``0.111+0.5`` for a cascade."""
    return "+".join(map(str, keep)) if isinstance(keep, tuple) else str(keep)


def target_tokens(keep: Keep, num_visual_tokens: int) -> float:
    """Return the layer-average number of tokens that ``keep`` stands for in an image of ``num_visual_tokens``.

    Raises
    ------
    BudgetError
        If it is less than one token.
    """
    target = min(keep, num_visual_tokens) if isinstance(keep, int) else keep * num_visual_tokens
    if target < 1:
        raise BudgetError(
            f"keep={keep} leaves less than one of {num_visual_tokens} visual tokens; "
            f"use at least {math.ceil(1e4 / num_visual_tokens) / 1e4}."
        )
    return float(min(target, num_visual_tokens))


def stages_for(
    keep: Keep, num_visual_tokens: int, num_layers: int, shape: Sequence[tuple[float, float]]
) -> tuple[Stage, ...]:
    """Return the stages whose layer-average is nearest to ``keep``.

    Parameters
    ----------
    keep : fraction of the visual tokens (float), or number of tokens (int), as a layer-average.
    num_visual_tokens, num_layers : of the image and of the language model.
    shape : (fraction of the layers where a stage starts, relative size of the stage), first one at 0.
    """
    target = target_tokens(keep, num_visual_tokens)
    starts = [round(fraction * num_layers) for fraction, _ in shape]
    ends = [*starts[1:], num_layers]
    spans = [
        (start, end - start, size) for (_, size), start, end in zip(shape, starts, ends, strict=True) if end > start
    ]
    counts = _counts(target, num_visual_tokens, tuple((length, size) for _, length, size in spans))
    return tuple(Stage(start, count) for (start, _, _), count in zip(spans, counts, strict=True))


def stages_inside(
    keep: Keep, num_visual_tokens: int, num_layers: int, layers: Sequence[int], sizes: Sequence[float], option: str
) -> tuple[Stage, ...]:
    """Return the stages that keep all tokens up to the first of ``layers``, and then those that the budget leaves.

    Parameters
    ----------
    layers : where stages start, ascending.
    sizes : relative numbers of tokens of these stages, in descending order.
    option : the name of the method's option that sets the layers, for the error.

    Raises
    ------
    BudgetError
        If the layers before the first stage alone exceed ``keep``, or the model has no such layers.
    """
    if not layers or min(layers) < 1 or max(layers) >= num_layers:
        named = ", ".join(map(str, layers)) or "none"
        raise BudgetError(
            f"Pruning at layer {named} is not possible in a model of {num_layers} layers; "
            f"the option {option!r} takes layers from 1 to {num_layers - 1}."
        )
    first = layers[0]
    ends = [*layers[1:], num_layers]
    spans = tuple((end - start, size) for start, end, size in zip(layers, ends, sizes, strict=True))
    num_pruned = num_layers - first
    after = (target_tokens(keep, num_visual_tokens) * num_layers - first * num_visual_tokens) / num_pruned
    # Rounding may exceed the budget by half a token of the longest stage, and so may one token in each stage.
    if after < 1 - max(length for length, _ in spans) / (2 * num_pruned):
        least = (first * num_visual_tokens + num_pruned) / num_layers / num_visual_tokens
        earlier = f"choose earlier ones with the option {option!r} or " if first > 1 else ""
        raise BudgetError(
            f"keep={keep} cannot be met by pruning at layer {first} of {num_layers}, since the layers before see all "
            f"{num_visual_tokens} visual tokens; {earlier}use at least "
            f"{math.ceil(1e4 * least) / 1e4:g}."
        )
    counts = _counts(after, num_visual_tokens, spans)
    return (Stage(0, num_visual_tokens), *map(Stage, layers, counts))


def stages_along(keep: Keep, num_visual_tokens: int, num_layers: int, remaining: Sequence[float]) -> tuple[Stage, ...]:
    """Return stages that follow a curve over the layers, adjusted so that their layer-average meets ``keep``.

    Parameters
    ----------
    remaining : for each layer, the fraction of the visual tokens that it sees: 1 in the first layer, and never more
        than in the layer before. All fractions are raised to the common power at which the average meets ``keep``.

    Raises
    ------
    BudgetError
        If one token in each layer that does not see everything is still more than ``keep``.
    """
    target = target_tokens(keep, num_visual_tokens)
    num_full = sum(fraction == 1.0 for fraction in remaining)
    least = (num_full + (num_layers - num_full) / num_visual_tokens) / num_layers
    if target * num_layers < least * num_visual_tokens * num_layers - 0.5:
        raise BudgetError(
            f"keep={keep} cannot be met: {num_full} of {num_layers} layers see all {num_visual_tokens} visual tokens; "
            f"use at least {math.ceil(1e4 * least) / 1e4:g}."
        )
    if target == num_visual_tokens:
        return (Stage(0, num_visual_tokens),)

    # Rounded down, with the rest given to the largest remainders, the counts never grow from layer to layer.
    exact = [num_visual_tokens * share for share in bend(remaining, target / num_visual_tokens, 1 / num_visual_tokens)]
    counts = [math.floor(count + 1e-9) for count in exact]
    by_remainder = sorted(range(num_layers), key=lambda layer: counts[layer] - exact[layer])
    for layer in by_remainder[: max(0, round(target * num_layers) - sum(counts))]:
        counts[layer] += 1
    return tuple(Stage(layer, count) for layer, count in enumerate(counts) if layer == 0 or count < counts[layer - 1])


def bend(remaining: Sequence[float], average: float, least: float) -> list[float]:
    """Raise fractions to the common power at which their average is ``average``, none of them below ``least``."""

    def bent(power: float) -> list[float]:
        return [max(least, fraction**power) for fraction in remaining]

    total = average * len(remaining)
    low, high = 0.0, 1.0
    while sum(bent(high)) > total and high < 1e9:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(bent(middle)) > total else (low, middle)
    return bent(high)


def at_same_depth(layers: Sequence[int], of: int, num_layers: int) -> tuple[int, ...]:
    """Return, for layers of a model with ``of`` layers, those at the same depth of one with ``num_layers``.

    The result is ascending and starts at layer 1 or later.
    """
    scaled: list[int] = []
    for layer in layers:
        scaled.append(max(round(layer * num_layers / of), scaled[-1] + 1 if scaled else 1))
    return tuple(layer for layer in scaled if layer < num_layers)


@functools.lru_cache(maxsize=256)
def _counts(target: float, most: int, spans: tuple[tuple[int, float], ...]) -> tuple[int, ...]:
    """Return the token counts of consecutive spans of layers whose average is nearest to ``target``.

    A span is (length, relative size). Each count is the relative size times a common factor, bounded to [1, most]. The
    other spans compensate for a bound that is reached.
    """
    total = sum(length for length, _ in spans)

    def counts_at(factor: float) -> list[float]:
        return [min(max(factor * size, 1.0), float(most)) for _, size in spans]

    def average(counts: Sequence[float]) -> float:
        return sum(count * length for count, (length, _) in zip(counts, spans, strict=True)) / total

    low, high = 0.0, most / min(size for _, size in spans)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if average(counts_at(middle)) < target else (low, middle)
    exact = counts_at(high)
    roundings = itertools.product(*({math.floor(count + 1e-9), math.ceil(count - 1e-9)} for count in exact))
    return min(
        (counts for counts in roundings if list(counts) == sorted(counts, reverse=True)),
        key=lambda counts: (abs(average(counts) - target), counts),
    )


def tokens_per_layer(stages: Sequence[Stage], num_visual_tokens: int, num_layers: int) -> list[int]:
    """Return how many of an image's visual tokens each decoder layer sees; stages never add tokens."""
    counts, current = [], num_visual_tokens
    remaining = {stage.layer: stage.num_tokens for stage in stages}
    for layer in range(num_layers):
        current = min(current, remaining.get(layer, current))
        counts.append(current)
    return counts


def layer_average(stages: Sequence[Stage], num_visual_tokens: int, num_layers: int) -> float:
    """Return the mean of :func:`tokens_per_layer`."""
    return sum(tokens_per_layer(stages, num_visual_tokens, num_layers)) / num_layers

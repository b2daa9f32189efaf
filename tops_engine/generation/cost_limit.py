"""Keep as many visual tokens as a limit of cost allows."""

import bisect
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tops_engine.answers.report import CostLimitUsage
from tops_engine.budget import tokens_per_layer
from tops_engine.device.cost_model import CostModel
from tops_engine.errors import BudgetError
from tops_engine.families import Decoder, Prompt
from tops_engine.generation.planning import Group, plan_groups
from tops_engine.settings import Pruning
from tops_engine.settings.cost_limits import UNITS, CostLimit


@dataclass(frozen=True)
class Costs:
    """What a prompt costs by the number of tokens in each layer.

    Attributes
    ----------
    max_new : the most tokens of the answer.
    model : the measured speed of the model on the device, if a limit of time is asked for.
    """

    decoder: Decoder
    prompt: Prompt
    max_new: int
    model: CostModel | None

    def of(self, name: str, groups: Sequence[Group]) -> float:
        """Return the cost under a limit's name: a share, MiB or milliseconds."""
        per_layer, last = self._tokens_per_layer(groups)
        if name == "kv_mb":
            shape, itemsize = self.decoder.shape, self.decoder.dtype.itemsize
            return shape.kv_cache_bytes(per_layer, self.max_new - 1, itemsize) / 2**20
        flops = self._prefill_flops(per_layer, last)
        if name == "flops":
            return flops / self._prefill_flops([len(self.prompt.input_ids)] * self.decoder.num_layers, 0)
        assert self.model is not None
        return self.model.first_token_ms(self._num_visual, flops)

    @property
    def _num_visual(self) -> int:
        return sum(span.layout.num_tokens for span in self.prompt.spans)

    def _tokens_per_layer(self, groups: Sequence[Group]) -> tuple[list[int], int]:
        """Return the tokens in each layer, and the layer where the last stage begins."""
        num_layers = self.decoder.num_layers
        per_layer = [len(self.prompt.input_ids) - self._num_visual] * num_layers
        last = 0
        for group in groups:
            size = sum(self.prompt.spans[number].layout.num_tokens for number in group.members)
            counts = tokens_per_layer(group.stages, size, num_layers)
            per_layer = [count + more for count, more in zip(per_layer, counts, strict=True)]
            last = max(last, *(stage.layer for stage in group.stages))
        return per_layer, last

    def _prefill_flops(self, per_layer: Sequence[int], last: int) -> int:
        shape = self.decoder.shape
        # Behind the last stage only the last token runs through layers that keep nothing.
        alone = max(last, self.decoder.num_writing_layers)
        known = [count - 1 if layer >= alone else 0 for layer, count in enumerate(per_layer)]
        return shape.prefill_flops(per_layer, known) + shape.embedding_flops(len(self.prompt.input_ids))


def plan_within(limit: CostLimit, pruning: Pruning, costs: Costs) -> tuple[list[Group], CostLimitUsage | None]:
    """Return the groups of a prompt at the largest budget whose cost is within the limit, and what that is.

    All pictures without a budget of their own get the same fraction. The budgets tried are whole numbers of tokens of
    all of them together. Without such pictures there is nothing to choose, and no usage.

    Raises
    ------
    BudgetError
        If the smallest budget costs more; it says what is the least.
    """
    prompt, num_layers = costs.prompt, costs.decoder.num_layers
    shared = [span.layout.num_tokens for span, keep in zip(prompt.spans, prompt.keeps, strict=True) if keep is None]
    total = sum(shared)

    @functools.cache
    def plan(count: int) -> tuple[list[Group], float] | None:
        """Return the groups with so many tokens and their cost; None if the method cannot keep so few."""
        try:
            (groups,) = plan_groups([prompt], pruning.with_budget(_fraction(count, total)), num_layers)
        except BudgetError:
            return None
        return groups, costs.of(limit.name, groups)

    def is_too_much(count: int) -> bool:
        planned = plan(count)
        return planned is not None and planned[1] > limit.value

    if not shared:
        return plan_groups([prompt], pruning.with_budget(1.0), num_layers)[0], None
    counts = range(1, total + 1)
    # Costs grow with the budget, and what is more than a possible budget is possible.
    least = counts[min(bisect.bisect_left(counts, True, key=lambda count: plan(count) is not None), total - 1)]
    best = bisect.bisect_left(counts, True, key=is_too_much)
    found = plan(best) if best >= least else None
    if found is None:
        smallest = plan(least)
        if smallest is None:
            # The method says why it cannot run.
            plan_groups([prompt], pruning.with_budget(1.0), num_layers)
        assert smallest is not None
        raise BudgetError(_sentence(limit, smallest[1], _fraction(least, total)))
    return found[0], CostLimitUsage(name=limit.name, limit=limit.value, cost=found[1], keep=_fraction(best, total))


def _fraction(count: int, total: int) -> float:
    """Return the fraction that is ``count`` of ``total`` tokens and no less by rounding."""
    fraction = count / total
    return fraction if fraction * total >= count else math.nextafter(fraction, 1.0)


def _sentence(limit: CostLimit, least: float, keep: float) -> str:
    digits = 10 ** (3 - math.floor(math.log10(least)))
    rounded = math.ceil(least * digits) / digits
    return (
        f"{limit} cannot be met: this prompt costs at least {rounded:g}{UNITS[limit.name]}, at keep={keep:.4f}; allow "
        "that, or send fewer or smaller pictures or less text."
    )

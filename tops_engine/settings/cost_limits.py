"""Budgets that are a limit of cost: the run keeps as many visual tokens as the limit allows."""

from typing import NamedTuple

from tops_engine.methods import Method

#: The limits by name, and their units.
UNITS = {"flops": "", "kv_mb": " MiB", "first_token_ms": " ms"}


class CostLimit(NamedTuple):
    """The most that a prompt may cost: ``name`` is a key of ``UNITS``."""

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name}={self.value:g}"


def check_cost_limit(limit: CostLimit, allocation: str, method: Method) -> None:
    """Check that the allocation and the method can follow a limit.

    Raises
    ------
    ValueError
        If one of them cannot.
    """
    if allocation != "fixed":
        raise ValueError(
            f"{limit.name} limits the cost of each prompt, and allocation={allocation} gives some prompts more than "
            "others; leave out one of them"
        )
    if not (method.prunes_before_the_llm or method.prunes_between_layers):
        raise ValueError(f"Method {method.name!r} chooses no tokens; {limit.name} needs one that does, such as tops")

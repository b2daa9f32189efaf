"""Budgets that are a limit of cost: the run keeps as many visual tokens as the limit allows."""

from typing import Any, NamedTuple, Protocol

#: The limits by name, and their units.
UNITS = {"flops": "", "kv_mb": " MiB", "first_token_ms": " ms"}


class CostLimit(NamedTuple):
    """The most that a prompt may cost: ``name`` is a key of ``UNITS``."""

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name}={self.value:g}"


class Limited(Protocol):
    """The options of a pruning that limit its cost."""

    @property
    def method(self) -> str: ...
    @property
    def method_instance(self) -> Any: ...
    @property
    def allocation(self) -> str: ...
    @property
    def flops(self) -> float | None: ...
    @property
    def kv_mb(self) -> float | None: ...
    @property
    def first_token_ms(self) -> float | None: ...


def cost_limit(pruning: Limited) -> CostLimit | None:
    """Return the limit of a pruning, None if it has none."""
    found = [CostLimit(name, getattr(pruning, name)) for name in UNITS if getattr(pruning, name) is not None]
    return found[0] if found else None


def check_cost_limit(pruning: Limited, has_keep: bool, has_schedule: bool) -> None:
    """Check that at most one option sets the budget, and that the method can follow a limit.

    Raises
    ------
    ValueError
        If they do not fit.
    """
    found = [name for name in UNITS if getattr(pruning, name) is not None]
    if not found:
        return
    others = [*found, *(["keep"] if has_keep else []), *(["schedule"] if has_schedule else [])]
    if len(others) > 1:
        raise ValueError(f"{others[1]} and {others[0]} both set the budget; give one of them")
    if pruning.allocation != "fixed":
        raise ValueError(
            f"{found[0]} limits the cost of each prompt, and allocation={pruning.allocation} gives some prompts more "
            "than others; leave out one of them"
        )
    method = pruning.method_instance
    if not (method.prunes_before_the_llm or method.prunes_between_layers):
        raise ValueError(f"Method {pruning.method!r} chooses no tokens; {found[0]} needs one that does, such as tops")

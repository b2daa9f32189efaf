"""What the option ``rectify`` goes with."""

from typing import Protocol

from tops_engine.budget import BudgetPer
from tops_engine.methods import Method, Positions, Rectify


class _Options(Protocol):
    @property
    def method(self) -> str: ...
    @property
    def rectify(self) -> Rectify: ...
    @property
    def merge(self) -> bool: ...
    @property
    def budget_per(self) -> BudgetPer: ...
    @property
    def positions(self) -> Positions | None: ...


def check_rectify(pruning: _Options, method: Method) -> None:
    """Refuse options that ``rectify`` does not go with.

    Raises
    ------
    ValueError
        With a sentence that says what to leave out.
    """
    if pruning.rectify == "none":
        return
    if not method.prunes_before_the_llm:
        raise ValueError(f"rectify needs a method that prunes before the language model; {pruning.method!r} does not")
    if pruning.merge:
        raise ValueError("rectify and merge both use the dropped tokens; give one of them")
    if pruning.budget_per != "picture":
        raise ValueError("rectify chooses for each picture alone; leave out budget_per")
    if pruning.positions == "contiguous":
        raise ValueError("rectify keeps the original positions; leave out positions")


def rectify_words(pruning: _Options) -> list[str]:
    """Return the word of a label that gives the option, if it is used."""
    return [] if pruning.rectify == "none" else [f"rectify={pruning.rectify}"]

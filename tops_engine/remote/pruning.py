"""The pruning of a server, and what a request may change of it.

A server with the plugin states its pruning in a line of ``/metrics``. For one request it takes another budget, up to
its own.
"""

import re
from collections.abc import Sequence
from typing import Any

from tops_engine.budget import Keep
from tops_engine.errors import InvalidInput, shorten
from tops_engine.methods.file_option import names_file
from tops_engine.settings import Pruning, pruning_fields
from tops_engine.settings.allocation import divides_budget
from tops_engine.tower import WHOLE_TOWER

METRIC = re.compile(r"^tops_pruning_info\{(.*)\} ", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
NOTHING = Pruning(method="none", keep=1.0)


def read_metrics(text: str) -> Pruning | None:
    """Return the pruning that a server states in its ``/metrics``.

    vLLM without the plugin prunes nothing. The pruning is None (unknown) for another server, and for a version of the
    plugin with other options.
    """
    found = METRIC.search(text)
    if found is not None:
        # A server must not name files of this machine, such as recipes.
        known = {name for name, (field, _) in pruning_fields().items() if not names_file(field)}
        try:
            return Pruning(**{name: value for name, value in LABEL.findall(found[1]) if name in known})
        except InvalidInput:
            return None
    return NOTHING if "\nvllm:" in text else None


def request_fields(
    asked: Pruning, served: Pruning | None, url: str, own_keeps: Sequence[Keep | None] = ()
) -> tuple[Pruning, dict[str, Any]]:
    """Return the pruning that will run, and the fields of the request that ask for it.

    Parameters
    ----------
    asked : the wanted pruning; without a method and options, those of the server are meant.
    served : the pruning of the server; None if it is unknown.
    own_keeps : the own budget of each picture; None where it has none.

    Raises
    ------
    InvalidInput
        If the server cannot prune so, or its pruning is unknown.
    """
    if served is None:
        raise InvalidInput(
            f"{shorten(url)} does not state what it prunes; leave out the pruning, or serve the model by "
            "`tops serve MODEL`."
        )
    if len(asked.steps) > 1 or asked.cost_limit is not None:
        raise InvalidInput("A server reads a prompt once, with one budget; give keep a single value.")
    # Without pictures of their own budget, one budget holds for all.
    budgets = [asked.budget if keep is None else keep for keep in own_keeps] or [asked.budget]
    if served == NOTHING:
        if asked.method == "none" or (asked.schedule is None and set(budgets) == {1.0}):
            return NOTHING, {}
        raise InvalidInput(f"{shorten(url)} prunes nothing; serve the model by `tops serve MODEL --keep {budgets[0]}`.")
    if asked.schedule is not None or asked.positions == "original":
        raise InvalidInput("A server takes no schedule and no original positions; give a budget by keep.")
    if divides_budget(asked):
        raise InvalidInput("A server reads each picture alone; leave out allocation and budget_per.")
    if asked.tower_options != WHOLE_TOWER:
        raise InvalidInput("A server runs the vision tower as it is; leave out dedup, tower_keep and tower_layer.")
    names_method = bool(asked.model_fields_set - {"keep"})
    differs = asked.before_the_llm().method_instance != served.before_the_llm().method_instance
    if names_method and (differs or asked.merge != served.merge):
        raise InvalidInput(
            f"{shorten(url)} prunes by {served.label}, as it was started; it cannot prune by {asked.label}. "
            "Leave out the method and its options."
        )
    for budget in budgets:
        # A fraction and a number cannot be compared here: that needs the token counts of the pictures.
        if type(budget) is type(served.budget) and budget > served.budget:
            raise InvalidInput(
                f"{shorten(url)} keeps {served.budget} at most, as it was started; ask for that or less, or serve the "
                f"model with --keep {budget}."
            )
    if set(budgets) == {served.budget}:
        return served, {}
    differ = len(set(budgets)) > 1
    runs = served.model_copy(update={"keep": asked.budget if differ else budgets[0]})
    return runs, {"mm_processor_kwargs": {"tops_keep": budgets if differ else budgets[0]}}

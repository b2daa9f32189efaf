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


def request_fields(asked: Pruning, served: Pruning | None, url: str) -> tuple[Pruning, dict[str, Any]]:
    """Return the pruning that will run, and the fields of the request that ask for it.

    Parameters
    ----------
    asked : the wanted pruning; without a method and options, those of the server are meant.
    served : the pruning of the server; None if it is unknown.

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
    prunes_nothing = asked.keep == 1.0 and asked.schedule is None
    if served == NOTHING:
        if prunes_nothing or asked.method == "none":
            return NOTHING, {}
        raise InvalidInput(f"{shorten(url)} prunes nothing; serve the model by `tops serve MODEL --keep {asked.keep}`.")
    if asked.schedule is not None or asked.positions == "original":
        raise InvalidInput("A server takes no schedule and no original positions; give a budget by keep.")
    if divides_budget(asked):
        raise InvalidInput("A server reads each picture alone; leave out allocation and budget_per.")
    names_method = bool(asked.model_fields_set - {"keep"})
    differs = asked.before_the_llm().method_instance != served.before_the_llm().method_instance
    if names_method and (differs or asked.merge != served.merge):
        raise InvalidInput(
            f"{shorten(url)} prunes by {served.label}, as it was started; it cannot prune by {asked.label}. "
            "Leave out the method and its options."
        )
    if asked.keep == served.keep:
        return served, {}
    # A fraction and a number cannot be compared here: that needs the token counts of the pictures.
    if type(asked.keep) is type(served.keep) and asked.keep > served.keep:
        raise InvalidInput(
            f"{shorten(url)} keeps {served.keep} at most, as it was started; ask for that or less, or serve the model "
            f"with --keep {asked.keep}."
        )
    runs = served.model_copy(update={"keep": asked.keep})
    return runs, {"mm_processor_kwargs": {"tops_keep": asked.keep}}


def of_all_pictures(
    asked: Pruning | None, served: Pruning | None, keeps: Sequence[Keep | None], url: str
) -> Pruning | None:
    """Return the pruning to ask for when pictures may have budgets of their own; a server takes one for all of them.

    Parameters
    ----------
    asked, served : as for :func:`request_fields`; None asks for what the server was started with.
    keeps : the own budget of each picture; None where it has none.

    Raises
    ------
    InvalidInput
        If the pictures ask for different budgets.
    """
    if all(keep is None for keep in keeps):
        return asked
    common = asked or served
    budgets = {(common.keep if common else None) if keep is None else keep for keep in keeps}
    if len(budgets) > 1:
        raise InvalidInput(
            f"The pictures of a request have different budgets; {url} takes one for all of them. Give each the same, "
            "or ask a model on this machine."
        )
    keep = budgets.pop()
    assert keep is not None
    return Pruning(keep=keep) if asked is None else asked.model_copy(update={"keep": keep})

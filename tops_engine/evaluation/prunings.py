"""The prunings that are compared: their names, and the unpruned model as the reference."""

from collections.abc import Mapping, Sequence
from typing import Any

from tops_engine.errors import InvalidInput, quote, shorten
from tops_engine.methods.composition import method_named
from tops_engine.settings import Pruning

UNPRUNED = Pruning(method="none", keep=1.0)


def pruning_name(pruning: Pruning) -> str:
    """Return the method with its options, and the budget: ``tops:alpha=0.4 0.222``."""
    return f"{pruning.label} {pruning.budget_text}"


def settings_key(resolved: Mapping[str, Any]) -> str:
    """Return a key of the options of a run, as :meth:`Pruning.resolved` gives them, without those at their defaults.

    An option that a later version adds, and that is not used, leaves the keys of older result files as they are.
    """
    defaults = {name: field.default for name, field in Pruning.model_fields.items() if not field.is_required()}
    used = {name: value for name, value in resolved.items() if name not in defaults or value != defaults[name]}
    return repr(sorted(used.items()))


def without_unpruned(prunings: Sequence[Pruning]) -> list[Pruning]:
    """Return each pruning once, without ``none``, which every comparison runs anyway."""
    return [pruning for pruning in dict.fromkeys(prunings) if pruning.method != UNPRUNED.method]


def is_compared(pruning: Pruning, other: Pruning, against: Sequence[str]) -> bool:
    """Return whether a pruning is compared with another one: a named method at the same budget."""
    return other.label in against and pruning.budget_text == other.budget_text and other != pruning


def check_measured(against: Sequence[str], measured: Sequence[Pruning]) -> None:
    """Raise :class:`InvalidInput` if a label to compare with belongs to none of the measured prunings."""
    labels = list(dict.fromkeys(pruning.label for pruning in measured))
    unknown = [label for label in against if label not in labels]
    if unknown:
        raise InvalidInput(
            f"Nothing measures {quote(unknown[0])} to compare with; this run measures {shorten(', '.join(labels))}."
        )


def resize_label(one_size: bool) -> str:
    """Return the label of the smaller picture that pruning is compared with.

    Parameters
    ----------
    one_size : whether the model brings every picture to one size; the picture is then enlarged again, and nothing is
        saved.
    """
    return "resize:enlarge=true" if one_size else "resize"


def with_smaller_pictures(prunings: Sequence[Pruning], one_size: bool) -> list[Pruning]:
    """Return prunings and, for each plain budget among them, a smaller picture; see :func:`resize_label`."""
    plain = [one.keep for one in prunings if one.schedule is None and one.cost_limit is None]
    budgets = dict.fromkeys(keep for keep in plain if not isinstance(keep, tuple))
    return [*prunings, *(Pruning.from_label(resize_label(one_size), keep) for keep in budgets)]


def reseeded(pruning: Pruning, number: int) -> Pruning:
    """Return the pruning with ``number`` as its selection seed, unless it has one or its method takes none.

    A method that draws tokens at random is judged by several draws, not by one.
    """
    options = pruning.model_extra or {}
    if "selection_seed" not in method_named(pruning.method).model_fields or "selection_seed" in options:
        return pruning
    return Pruning(**pruning.model_dump() | {"selection_seed": number})

"""Prunings named in a text, such as the flag of a command or the widget of a node."""

import contextlib

from tops_engine.errors import InvalidInput
from tops_engine.methods import METHODS
from tops_engine.methods.resize import Resize
from tops_engine.settings.pruning import Pruning


def read_labels(methods: str, videos: bool = False) -> list[str]:
    """Return the labels in a text that separates them by commas, such as ``tops,tops:lambda=2.0,divprune``.

    ``all`` stands for every method that saves tokens and needs no option; methods for videos are among them only with
    ``videos``.

    Raises
    ------
    InvalidInput
        If the text names no method.
    """
    parts = _parts(methods, "Name at least one method, such as tops,divprune.")
    return [label for part in parts for label in (_all_methods(videos) if part == "all" else [part])]


def read_prunings(methods: str, keep: str, videos: bool = False) -> list[Pruning]:
    """Return every method at every budget; both texts separate their parts by commas.

    Parameters
    ----------
    videos : as in :func:`read_labels`.

    Raises
    ------
    InvalidInput
        If there is no method or no budget, or one of them is not allowed.
    """
    labels = read_labels(methods, videos)
    budgets = _parts(keep, "Give at least one budget, such as 0.222,0.111.")
    return [Pruning.from_label(label, budget) for budget in budgets for label in labels]


def _parts(text: str, error: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InvalidInput(error)
    return parts


def _all_methods(videos: bool) -> list[str]:
    names = []
    for name in METHODS:
        if METHODS[name].for_videos and not videos:
            continue
        with contextlib.suppress(InvalidInput):
            method = Pruning(method=name).method_instance
            if method.prunes_before_the_llm or method.prunes_between_layers or isinstance(method, Resize):
                names.append(name)
    return names

"""The ``widgets_values`` of a saved node: which value belongs to which widget."""

from typing import Any

from tops_workflow.definitions import Definition
from tops_workflow.widgets import MISSING, Widget, has_upload, inputs_of, node_widgets


def read_widgets(definition: Definition, saved: Any) -> list[Widget]:
    """Return the widgets of a saved node; a widget that has no saved value has its default."""
    values = iter(_without_forced(definition, saved))
    return node_widgets(definition, lambda name, default: next(values, default))


def _without_forced(definition: Definition, saved: Any) -> list[Any]:
    """Return the values in the order of the widgets.

    Early frontends also saved a value for each input that is always a socket; these values go where their number shows
    that they are there. An object counts as a list only if it has as many entries as that.
    """
    as_saved = saved if isinstance(saved, list) else []
    new = node_widgets(definition, lambda name, default: default)
    shown = {widget.name for widget in new}
    hidden = {widget.name for widget in new if not widget.saved}
    forced: list[bool] = []
    for entry in inputs_of(definition):
        is_forced = bool(entry.options.get("forceInput"))
        if entry.name in hidden or not (is_forced or entry.name in shown):
            continue
        forced += [is_forced, False] if entry.options.get("control_after_generate") else [is_forced]
    if has_upload(definition):
        forced.append(False)
    room = sum(widget.saved for widget in new)
    if isinstance(saved, list) and True not in forced and len(saved) == room:
        return saved
    values = list(saved.values()) if isinstance(saved, dict) else as_saved
    compact = [value for index, value in enumerate(values) if index >= len(new) or new[index].saved]
    if isinstance(saved, dict):
        compact = values
    aligned = compact if len(compact) == len(forced) else as_saved if len(as_saved) == len(forced) else None
    if aligned is None:
        return as_saved
    return [value for value, is_forced in zip(aligned, forced, strict=True) if not is_forced]


def write_values(definition: Definition, inputs: dict[str, Any]) -> list[Any]:
    """Return the ``widgets_values`` of a node; a widget that is not in ``inputs`` has its default."""

    def take(name: str, default: Any) -> Any:
        value = inputs.get(name, default)
        return None if value is MISSING else value

    return [take(widget.name, widget.value) for widget in node_widgets(definition, take) if widget.saved]


def room_for(definition: Definition, saved: Any) -> int:
    """Return how many values a saved node has room for, given the choices in its values."""
    return sum(widget.saved for widget in read_widgets(definition, saved))

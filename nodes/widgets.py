"""Widgets derived from fields of settings, and field values derived from widget values.

A widget has the type, bounds, default and tooltip of its field. An optional field has a widget value that means
"unset": the words ``default`` or ``none`` for choices, an empty text for texts, 0 for numbers that may not be 0.
"""

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from tops_engine.settings import Settings

Widget = tuple[Any, dict[str, Any]]

UNSET = ("default", "none")

#: The upper bound of numbers that have none; the frontend would assume 2048.
LARGEST = 2**20


def widget(field: FieldInfo, unset: str = UNSET[0], **options: Any) -> Widget:
    """Return the widget of a field.

    Parameters
    ----------
    unset : the choice that stands for an unset field.
    options : of the widget; they replace the derived ones.
    """
    kinds, optional = _kinds(field)
    derived: dict[str, Any] = {"tooltip": field.description or ""}
    default = field.get_default(call_default_factory=True, validated_data={})
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        derived["default"] = unset if default is None else default
        return [unset, *choices] if optional else choices, derived | options
    if bool in kinds:
        return "BOOLEAN", derived | {"default": default} | options
    if float in kinds or int in kinds:
        return _number(field, float if float in kinds else int, default, optional, derived, options)
    return "STRING", derived | {"default": _text(default)} | options


def advanced(widgets: dict[str, Widget]) -> dict[str, Widget]:
    """Return widgets that the frontend's new renderer shows on request only."""
    return {name: (kind, options | {"advanced": True}) for name, (kind, options) in widgets.items()}


def shown_for(spec: Widget, **choices: Sequence[str]) -> Widget:
    """Return a widget that the page shows only where another widget has one of the given values (``web/tops.js``)."""
    kind, options = spec
    return kind, options | {"shown_for": {name: list(values) for name, values in choices.items()}}


def value_of(field: FieldInfo, value: Any) -> Any:
    """Return the field value that a widget value stands for; None is unset."""
    _, optional = _kinds(field)
    if get_origin(field.annotation) is tuple:
        return tuple(line for line in str(value).splitlines() if line)
    if not optional:
        return value
    bounds = _bounds(field)
    if value in ("", *UNSET) or (value == 0 and bounds.get("above") == 0):
        return None
    return value


def settings_from(settings: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a settings class from widget values, without those that are unset."""
    read = {name: value_of(settings.model_fields[name], value) for name, value in values.items()}
    return {name: value for name, value in read.items() if value is not None}


def _number(
    field: FieldInfo, kind: type, default: Any, optional: bool, derived: dict[str, Any], options: dict[str, Any]
) -> Widget:
    bounds = _bounds(field)
    unset = optional and bounds.get("above") == 0
    if kind is float:
        step = 0.01
        low = bounds.get("low", 0.0 if unset else bounds.get("above", 0.0) + step)
        derived |= {"min": float(low), "max": float(bounds.get("high", LARGEST)), "step": step, "round": 0.001}
        return "FLOAT", derived | {"default": float(default or 0.0)} | options
    low = bounds.get("low", 0 if unset else bounds.get("above", -1) + 1)
    derived |= {"min": low, "max": bounds.get("high", bounds.get("below", LARGEST + 1) - 1)}
    return "INT", derived | {"default": default or low} | options


def _bounds(field: FieldInfo) -> dict[str, Any]:
    """Return the bounds of a field: ``low`` (>=), ``above`` (>), ``high`` (<=) and ``below`` (<)."""
    names = {"ge": "low", "gt": "above", "le": "high", "lt": "below"}
    return {
        name: getattr(entry, bound)
        for entry in field.metadata
        for bound, name in names.items()
        if hasattr(entry, bound)
    }


def _kinds(field: FieldInfo) -> tuple[list[Any], bool]:
    """Return the types that a field accepts, and whether it may be unset."""
    annotation = field.annotation
    union = get_origin(annotation) in (Union, UnionType)
    members = list(get_args(annotation)) if union else [annotation]
    return [member for member in members if member is not NoneType], NoneType in members


def _text(default: Any) -> str:
    if isinstance(default, frozenset):
        return ",".join(sorted(default))
    return "\n".join(default) if isinstance(default, tuple) else str(default or "")

"""Widgets out of settings (type, bounds, default, tooltip), and back from a widget's value to the field's.

An optional field has a widget value that means "unset": the words ``default`` or ``none`` for choices, an empty text
for texts, 0 for numbers that may not be 0.
"""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from tops_engine.settings import Settings

Widget = tuple[Any, dict[str, Any]]

UNSET = ("default", "none")

#: What a number without an upper bound may be at most: the frontend would take 2048.
LARGEST = 2**20


def widget(field: FieldInfo, unset: str = UNSET[0], **options: Any) -> Widget:
    """The widget of a field; ``options`` replace what is derived, ``unset`` is the choice for an unset field."""
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


def value_of(field: FieldInfo, value: Any) -> Any:
    """What a widget's value means for the field; None is unset."""
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
    """Keyword arguments of a settings class from its widgets' values; what is unset is left out."""
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
    low = bounds.get("low", bounds.get("above", -1) + 1)
    derived |= {"min": low, "max": bounds.get("high", bounds.get("below", LARGEST + 1) - 1)}
    return "INT", derived | {"default": default or low} | options


def _bounds(field: FieldInfo) -> dict[str, Any]:
    """``low``, ``above``, ``high``, ``below``: the field's >=, >, <= and <."""
    names = {"ge": "low", "gt": "above", "le": "high", "lt": "below"}
    return {
        name: getattr(entry, bound)
        for entry in field.metadata
        for bound, name in names.items()
        if hasattr(entry, bound)
    }


def _kinds(field: FieldInfo) -> tuple[list[Any], bool]:
    """The types a field takes, and whether it may be unset."""
    annotation = field.annotation
    union = get_origin(annotation) in (Union, UnionType)
    members = list(get_args(annotation)) if union else [annotation]
    return [member for member in members if member is not NoneType], NoneType in members


def _text(default: Any) -> str:
    if isinstance(default, frozenset):
        return ",".join(sorted(default))
    return "\n".join(default) if isinstance(default, tuple) else str(default or "")

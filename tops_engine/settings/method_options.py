"""The options and presets of pruning methods, by the names that users write."""

import contextlib
from collections.abc import Mapping
from typing import Any, TypeGuard

from pydantic.fields import FieldInfo

from tops_engine.budget import Preset
from tops_engine.methods import METHODS
from tops_engine.methods.composition import method_named
from tops_engine.methods.file_option import FileOption, file_option_type


def is_method(name: object) -> TypeGuard[str]:
    """Return whether this is the name of a method, or of a composition of two."""
    with contextlib.suppress(ValueError):
        return isinstance(name, str) and bool(method_named(name))
    return False


def options_of(method: str) -> dict[str, FieldInfo]:
    """Return the options of a method by the names that users write (``lambda``, not ``lambda_``)."""
    return {field.alias or name: field for name, field in method_named(method).model_fields.items()}


def presets(method: str | None) -> dict[str, Preset]:
    """Return the presets that a method runs: those of its own source, then those of others for every method."""
    of_others = {
        name: preset for other in METHODS.values() for name, preset in other.presets.items() if preset.for_every_method
    }
    return {**(method_named(method).presets if is_method(method) else {}), **of_others}


def file_options(method: object = None) -> dict[str, type[FileOption]]:
    """Return the options that are an object with a file, by name: those of a method, or of all methods."""
    methods = [method] if is_method(method) else list(METHODS)
    fields = {name: field for one in methods for name, field in options_of(one).items()}
    kinds = {name: file_option_type(field) for name, field in fields.items()}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def with_settings_of_objects(options: Mapping[str, Any]) -> dict[str, Any]:
    """Add what objects among the options set, such as the method and budget of a recipe, unless others are given."""
    complete = dict(options)
    for name, kind in file_options(options.get("method")).items():
        if options.get(name) is not None:
            complete = kind.read(options[name]).settings() | complete
    return complete

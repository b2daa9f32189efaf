"""The chat model's options, derived from the engine's settings: each is defined, bounded and described once, there."""

import copy
import difflib
import functools
import operator
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.language_models import BaseChatModel
from pydantic import Field, create_model

from tops_engine.engine import Engine, shared_engine
from tops_engine.errors import InvalidInput
from tops_engine.methods import METHODS
from tops_engine.settings import Generation, ModelSpec, Pruning, pruning_fields

# What other chat models call these options.
OTHER_NAMES = {"max_new_tokens": "max_tokens", "stop_sequences": "stop", "model_name": "model", "lambda_": "lambda"}


class Settings(NamedTuple):
    """What to load, what to keep and how to write."""

    spec: ModelSpec
    pruning: Pruning
    generation: Generation

    @property
    def engine(self) -> Engine:
        return shared_engine(self.spec)


def setting_fields() -> dict[str, Any]:
    """Pydantic field definitions of all options.

    An option of one pruning method or several is unset by default, and the method then takes its published value.
    """
    definitions: dict[str, Any] = {}
    for settings in (ModelSpec, Generation):
        for name, field in settings.model_fields.items():
            definitions[name] = (field.annotation, copy.copy(field))
    options: dict[str, list[str]] = {}
    for name, (field, methods) in pruning_fields().items():
        if methods:
            options[name] = methods
        else:
            definitions[name] = (field.annotation, copy.copy(field))
    for name, methods in options.items():
        python_name = "lambda_" if name == "lambda" else name
        definitions[python_name] = _method_option(name, methods, alias=name if python_name != name else None)
    return definitions


def _method_option(name: str, methods: list[str], alias: str | None) -> tuple[Any, Any]:
    fields = [
        field
        for method in methods
        for field_name, field in METHODS[method].model_fields.items()
        if (field.alias or field_name) == name
    ]
    kinds = functools.reduce(operator.or_, (field.annotation for field in fields), None)
    description = f"{fields[0].description or ''} (Of: {', '.join(methods)}.)".strip()
    return kinds, Field(default=None, description=description, alias=alias)


if TYPE_CHECKING:

    class SettingFields(BaseChatModel, ModelSpec, Pruning, Generation):
        """For editors and type checkers; at run time only the fields are taken over."""

else:
    SettingFields = create_model("SettingFields", __base__=BaseChatModel, __module__=__name__, **setting_fields())

OF_MODEL = frozenset(ModelSpec.model_fields)
OF_GENERATION = frozenset(Generation.model_fields)
OF_PRUNING = frozenset(pruning_fields())
SETTING_NAMES = OF_MODEL | OF_GENERATION | OF_PRUNING


def common_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the engine's names."""
    return {OTHER_NAMES.get(name, name): value for name, value in options.items()}


def read_settings(options: Mapping[str, Any]) -> Settings:
    """Check options, under the engine's names; those that are None are unset.

    Raises:
        InvalidInput: If one is not allowed, in a sentence that says what is.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return Settings(
        ModelSpec(**{name: value for name, value in given.items() if name in OF_MODEL}),
        Pruning(**{name: value for name, value in given.items() if name in OF_PRUNING}),
        Generation(**{name: value for name, value in given.items() if name in OF_GENERATION}),
    )


def override(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the model with those of one call in their place.

    A call's ``keep`` replaces the model's ``schedule`` and the other way round, since both set the budget. Another
    ``method`` leaves behind the options it does not have.
    """
    merged = dict(options)
    for one, other in (("keep", "schedule"), ("schedule", "keep")):
        if changes.get(one) is not None and changes.get(other) is None:
            merged.pop(other, None)
    if changes.get("method") not in (None, options.get("method")):
        owners = {name: methods for name, (_, methods) in pruning_fields().items()}
        merged = {
            name: value
            for name, value in merged.items()
            if not owners.get(name) or changes["method"] in owners[name] or name in changes
        }
    return merged | dict(changes)


def refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options that do not exist, with the name that was probably meant.

    Raises:
        InvalidInput: If one is not known.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}."
            raise InvalidInput(f"ChatTOPSLlava has no option {name!r}; {hint}")

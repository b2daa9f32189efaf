"""The options of the chat model, derived from the engine's settings."""

import copy
import difflib
import functools
import operator
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.language_models import BaseChatModel
from pydantic import Field, create_model

from tops_engine.engine import Engine, shared_engine
from tops_engine.errors import InvalidInput, listed, quote
from tops_engine.settings import Generation, ModelSpec, Pruning, pruning_fields
from tops_engine.settings.cost_limits import UNITS
from tops_engine.settings.method_options import is_method, options_of, with_settings_of_objects

# What other chat models call these options.
OTHER_NAMES = {"max_new_tokens": "max_tokens", "stop_sequences": "stop", "model_name": "model", "lambda_": "lambda"}


class Settings(NamedTuple):
    """The model, the pruning and the options of writing of one call."""

    spec: ModelSpec
    pruning: Pruning
    generation: Generation

    @property
    def engine(self) -> Engine:
        return shared_engine(self.spec)


def setting_fields() -> dict[str, Any]:
    """Return pydantic field definitions of all options.

    An option of some methods is unset by default, so that the method takes its own default. The options of methods that
    are defined after this module was imported are no fields; the chat model takes them as extra values.
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
    fields = [options_of(method)[name] for method in methods]
    kinds = functools.reduce(operator.or_, (field.annotation for field in fields), None)
    description = f"{fields[0].description or ''} (Of: {', '.join(methods)}.)".strip()
    return kinds, Field(default=None, description=description, alias=alias)


if TYPE_CHECKING:

    class SettingFields(BaseChatModel, ModelSpec, Pruning, Generation):
        """For editors and type checkers; at run time only the fields are taken over."""

else:
    SettingFields = create_model("SettingFields", __base__=BaseChatModel, __module__=__name__, **setting_fields())

#: The options that set the budget; only one of them can.
BUDGETS = ("keep", "schedule", *UNITS)

OF_MODEL = frozenset(ModelSpec.model_fields)
OF_GENERATION = frozenset(Generation.model_fields)


def of_pruning() -> frozenset[str]:
    """Return the names of all options of pruning, those of methods defined just now included."""
    return frozenset(pruning_fields())


def setting_names() -> frozenset[str]:
    """Return the names of all options of the engine."""
    return OF_MODEL | OF_GENERATION | of_pruning()


def common_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options under the engine's names."""
    return {OTHER_NAMES.get(name, name): value for name, value in options.items()}


def settings_in(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that are the engine's, under its names."""
    names = setting_names()
    return {name: value for name, value in common_names(options).items() if name in names}


def read_settings(options: Mapping[str, Any]) -> Settings:
    """Check options, given under the engine's names; those that are None count as unset.

    Raises:
        InvalidInput: If an option is not allowed.
    """
    given = {name: value for name, value in options.items() if value is not None}
    names = of_pruning()
    return Settings(
        ModelSpec(**{name: value for name, value in given.items() if name in OF_MODEL}),
        Pruning(**{name: value for name, value in given.items() if name in names}),
        Generation(**{name: value for name, value in given.items() if name in OF_GENERATION}),
    )


def override(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the model with those of one call in their place.

    A budget of the call (``keep``, ``schedule`` or a limit of cost) replaces that of the model, whichever sets it. A
    recipe or another object brings the method and budget that it was made for. Another ``method`` drops the options of
    the model that it does not have.
    """
    changes = with_settings_of_objects(changes)
    merged = dict(options)
    if any(changes.get(name) is not None for name in BUDGETS):
        for name in BUDGETS:
            if changes.get(name) is None:
                merged.pop(name, None)
    if changes.get("method") not in (None, options.get("method")):
        # Pruning refuses a method that does not exist.
        own = options_of(changes["method"]) if is_method(changes["method"]) else {}
        of_some = {name for name, (_, methods) in pruning_fields().items() if methods}
        merged = {
            name: value for name, value in merged.items() if name not in of_some or name in own or name in changes
        }
    return merged | changes


def refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options that do not exist, and suggest the name that was probably meant.

    Raises:
        InvalidInput: If an option is not known.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {listed(known)}."
            raise InvalidInput(f"ChatTOPSLlava has no option {quote(name)}; {hint}")

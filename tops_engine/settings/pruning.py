"""Options that say which visual tokens are kept.

The fields of a method's class in ``methods/`` are its own options. :class:`Pruning` accepts them beside its own fields.
"""

import math
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from pydantic import (
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from tops_engine.budget import PRESETS, Keep, Preset, Stage
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.methods import METHODS, Method, Positions
from tops_engine.methods.recipe import Recipe
from tops_engine.settings.base import Settings, error_sentence

SCHEDULE_RULE = "a schedule is (layer, tokens) pairs: growing layers, at least one token, never more than before"


class Pruning(Settings):
    """Which visual tokens to keep: the method, the budget and the method's own options.

    ``Pruning(method="tops", keep=0.3, alpha=0.4, raters="last")``; the options of each method are the fields of its
    class (``METHODS["tops"].model_fields``), and an option that the method does not have is refused.
    """

    model_config = ConfigDict(extra="allow")

    method: str = Field(default="tops", description="Pruning method.")
    keep: Keep = Field(
        default=0.222,
        description="Visual tokens to keep, averaged over the layers: a fraction up to 1.0, or a number a picture "
        "(for a video: of the whole video).",
    )
    schedule: str | tuple[Stage, ...] | None = Field(
        default=None,
        description="In place of keep: a preset of a paper (llava-1.5-7b/64), or layer:tokens pairs (0:256,12:64).",
    )
    positions: Positions | None = Field(
        default=None,
        description="Position ids after pruning: contiguous (renumbered), original, or unset for the method's own way. "
        "Models with 3-D positions (Qwen-VL) always keep them.",
    )

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            method: str = ...,
            keep: Keep | str = ...,
            schedule: object = ...,
            positions: Positions | None = ...,
            **options: Any,
        ) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _lambda_is_a_keyword(cls, data: Any) -> Any:
        if isinstance(data, dict) and "lambda_" in data:
            return {("lambda" if name == "lambda_" else name): value for name, value in data.items()}
        return data

    @model_validator(mode="before")
    @classmethod
    def _as_from_json(cls, data: Any) -> Any:
        """So that settings equal what is read back from their JSON."""
        return {name: _plain(value) for name, value in data.items()} if isinstance(data, dict) else data

    @model_validator(mode="before")
    @classmethod
    def _recipe_sets_the_rest(cls, data: Any) -> Any:
        """A recipe brings its method, and its budget unless another is given."""
        if not isinstance(data, dict) or data.get("recipe") is None:
            return data
        recipe = Recipe.read(data["recipe"])
        return {"method": recipe.method, "keep": recipe.keep} | data

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"There is no method {value!r}; choose one of {', '.join(sorted(METHODS))}")
        return value

    @field_validator("keep", mode="before")
    @classmethod
    def _fraction_or_count(cls, value: object) -> Keep:
        rule = "give a fraction above 0 and up to 1.0, or a whole number of tokens from 2"
        if isinstance(value, str):
            try:
                value = float(value) if "." in value or "e" in value.lower() else int(value)
            except ValueError:
                raise ValueError(rule) from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(rule)
        if isinstance(value, int) and value == 1:
            raise ValueError("1 could mean one token or all of them; write 1.0 for all, or a small fraction")
        if isinstance(value, int):
            if value < 2:
                raise ValueError(rule)
        elif math.isnan(value) or not 0 < value <= 1:
            raise ValueError(rule)
        return value

    @field_validator("schedule", mode="before")
    @classmethod
    def _pairs_as_text(cls, value: object) -> object:
        """``0:256,12:64,24:32``, for places where one types a text."""
        if value is None or (isinstance(value, str) and ":" not in value):
            return value
        pairs = [part.split(":") for part in value.split(",")] if isinstance(value, str) else value
        try:
            return TypeAdapter(tuple[Stage, ...]).validate_python(pairs)
        except ValidationError:
            raise ValueError(SCHEDULE_RULE) from None

    @field_validator("schedule")
    @classmethod
    def _sound_schedule(
        cls, value: str | tuple[Stage, ...] | None, info: ValidationInfo
    ) -> str | tuple[Stage, ...] | None:
        if isinstance(value, str) and (known := presets(info.data.get("method"))) and value not in known:
            raise ValueError(f"There is no preset {value!r}; choose one of {', '.join(known)}")
        if isinstance(value, tuple):
            layers = [stage.layer for stage in value]
            counts = [stage.num_tokens for stage in value]
            if (
                not value
                or min(layers) < 0
                or min(counts) < 1
                or layers != sorted(set(layers))
                or counts != sorted(counts, reverse=True)
            ):
                raise ValueError(SCHEDULE_RULE)
        return value

    @model_validator(mode="after")
    def _options_fit_the_method(self) -> Self:
        if self.schedule is not None and self.keep != type(self).model_fields["keep"].default:
            raise ValueError("keep and schedule both set the budget; give one of them")
        method = self.build
        stages = self._preset.stages if self._preset else self.schedule
        for stage in stages or ():
            assert isinstance(stage, Stage)
            if not (method.prunes_before_the_llm if stage.layer == 0 else method.prunes_between_layers):
                where = "before the language model" if stage.layer == 0 else f"at layer {stage.layer}"
                raise ValueError(f"The schedule prunes {where}, where method {self.method!r} does not choose tokens")
        return self

    @field_serializer("schedule")
    def _plain_schedule(self, value: str | tuple[Stage, ...] | None) -> object:
        return [list(stage) for stage in value] if isinstance(value, tuple) else value

    @cached_property
    def build(self) -> Method:
        """The method with its options, ready to select."""
        method = METHODS[self.method]
        known = {field.alias or name for name, field in method.model_fields.items()}
        published = self._preset.options if self._preset else {}
        options: dict[str, Any] = {name: value for name, value in published.items() if name in known}
        options |= self.model_extra or {}
        try:
            return method(**options)
        except ValidationError as error:
            names = ", ".join(field.alias or name for name, field in method.model_fields.items()) or "none"
            raise ValueError(f"{error_sentence(error)} Method {self.method!r} has these options: {names}") from None

    def stages(self, num_visual_tokens: int, num_layers: int) -> tuple[Stage, ...]:
        """Token counts of an image at each stage.

        Raises
        ------
        BudgetError
            If ``keep`` leaves less than one token, or the schedule names a layer the model does not have.
        """
        if self.schedule is None:
            return self.build.plan(num_visual_tokens, num_layers, self.keep)
        stages = self._preset.stages_of(num_visual_tokens) if self._preset else self.schedule
        assert isinstance(stages, tuple)
        if stages[-1].layer >= num_layers:
            raise BudgetError(f"The schedule prunes at layer {stages[-1].layer}; the model has {num_layers} layers.")
        return tuple(Stage(stage.layer, min(stage.num_tokens, num_visual_tokens)) for stage in stages)

    @property
    def _preset(self) -> Preset | None:
        return presets(self.method)[self.schedule] if isinstance(self.schedule, str) else None

    @property
    def label(self) -> str:
        """The method with the options given for it, such as ``tops:lambda=2.0:normalization=minmax``."""
        options = self.build.model_dump(mode="json", by_alias=True)
        given = {name: value for name, value in options.items() if name in (self.model_extra or {})}
        return ":".join([self.method, *(f"{name}={self._word(name, value)}" for name, value in given.items())])

    def _word(self, name: str, value: object) -> str:
        if isinstance(value, list):
            return "+".join(map(str, value))
        # A recipe goes by its file.
        file = (self.model_extra or {})[name] if isinstance(value, dict) else value
        return f"for {value['model']}" if isinstance(value, dict) and isinstance(file, dict) else str(file)

    @classmethod
    def from_label(cls, label: str, keep: Keep | str) -> "Pruning":
        """The pruning of a :attr:`label` at a budget."""
        method, *options = label.strip().split(":")
        pairs = [option.partition("=") for option in options]
        if not all(equals for _, equals, _ in pairs):
            raise InvalidInput(f"{label!r} is not a method with options; write tops:lambda=2.0:normalization=minmax.")
        given: dict[str, Any] = {name: value for name, _, value in pairs}
        return cls(method=method, keep=keep, **given)

    def resolved(self) -> dict[str, Any]:
        """All options as they run, JSON-ready: given ones, the preset's, and the method's published values."""
        options = self.build.model_dump(mode="json", by_alias=True)
        return self.model_dump(mode="json") | options | {"positions": self.resolved_positions}

    @property
    def resolved_positions(self) -> Positions:
        return self.positions or self.build.default_positions


def presets(method: str | None) -> dict[str, Preset]:
    """What ``schedule`` knows by name: what the method's own source ran, then the rows of the TOPS paper."""
    return {**(METHODS[method].presets if method in METHODS else {}), **PRESETS}


def pruning_fields() -> dict[str, tuple[FieldInfo, list[str]]]:
    """All options :class:`Pruning` takes, the methods' own included, each with the methods that have it ([] for all).

    Keys are the names users write (``lambda``, not ``lambda_``).
    """
    fields: dict[str, tuple[FieldInfo, list[str]]] = {name: (field, []) for name, field in Pruning.model_fields.items()}
    for method_name, method in METHODS.items():
        for name, field in method.model_fields.items():
            fields.setdefault(field.alias or name, (field, []))[1].append(method_name)
    return fields


def _plain(value: object) -> object:
    """The value as it comes back from JSON."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, Recipe):
        return value.model_dump(mode="json")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value

"""Every option of the engine, once: flags, node widgets, chat model fields and request bodies derive from here.

A pruning method's own options are the fields of its class in ``methods/``; :class:`Pruning` takes them beside its own.
"""

import json
import math
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    BaseModel,
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
from tops_engine.recipe import Recipe

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"

SCHEDULE_RULE = "a schedule is (layer, tokens) pairs: growing layers, at least one token, never more than before"


def _sentence(error: ValidationError) -> str:
    """Pydantic's report as one sentence that names the option, the value and what is allowed."""
    parts = []
    for detail in error.errors(include_url=False):
        option = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            parts.append(f"There is no option {option!r}")
        elif option and not (detail["type"] == "value_error" and option in message):
            parts.append(f"{option}={detail['input']!r} is not allowed: {message}")
        else:
            parts.append(message)
    text = "; ".join(parts)
    return text if text.endswith(".") else f"{text}."


def _file_text(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"json_schema names a file that cannot be read: {error}") from None


def _plain(value: object) -> object:
    """The value as it comes back from JSON."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, Recipe):
        return value.model_dump(mode="json")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value


class Settings(BaseModel):
    """Frozen options with bounds and descriptions; anything not allowed raises :class:`InvalidInput`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise InvalidInput(_sentence(error)) from None


class ModelSpec(Settings):
    """Which checkpoint, where and how. Two equal specs share one loaded engine (``shared_engine``)."""

    model: str = Field(
        default_factory=lambda: os.environ.get("TOPS_MODEL") or DEFAULT_MODEL,
        min_length=1,
        description="Hub id or local folder of the checkpoint, or `mini` for the embedded model.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub checkpoint.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="Where to run: auto (the GPU if there is one), cpu, cuda, cuda:1, mps.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Precision of the weights; auto is bfloat16 on a GPU and float32 on a CPU."
    )
    attention: Literal["sdpa", "flash_attention_2", "eager"] = Field(
        default="sdpa", description="Attention implementation."
    )
    quantization: Literal["4bit", "8bit"] | None = Field(
        default=None, description="Load quantised weights through bitsandbytes (pip install tops-engine[quantization])."
    )
    compile: bool = Field(
        default=False,
        description="Compile the writing of answers for NVIDIA GPUs: the first ones take up to a minute longer. What "
        "it gains there was not measured yet; on a CPU it gains nothing.",
    )

    @model_validator(mode="after")
    def _can_compile(self) -> Self:
        if self.compile and self.quantization is not None:
            raise ValueError("compile does not take quantised weights; leave out compile or quantization")
        return self


class Generation(Settings):
    """How the answer is written."""

    max_tokens: int = Field(default=256, ge=1, description="Most tokens to write.")
    temperature: float = Field(
        default=0.0,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="0 takes the likeliest token each time; higher is freer.",
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Sample from the likeliest tokens that together hold this probability."
    )
    top_k: int = Field(default=0, ge=0, description="Sample from this many likeliest tokens; 0 is no limit.")
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=10, description="Above 1 discourages repeating; unset takes the checkpoint's own value."
    )
    stop: tuple[str, ...] = Field(default=(), description="The answer ends before any of these texts.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Makes sampling repeatable.")
    json_schema: str | None = Field(
        default=None,
        description="The answer is JSON that satisfies this schema: its text, or the path of a file that holds it.",
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("stop holds an empty text, which would end every answer at once; leave it out")
        return value

    @field_validator("json_schema", mode="before")
    @classmethod
    def _schema_as_text(cls, value: object) -> object:
        """One text for equal schemas; the order of the keys stays, as answers follow it."""
        if value is None:
            return None
        if isinstance(value, str | os.PathLike) and not str(value).lstrip().startswith("{"):
            value = _file_text(Path(value))
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise ValueError(f"json_schema is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError("json_schema is a JSON Schema object, its text, or the path of a file that holds it")
        try:
            return json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"json_schema holds what JSON cannot: {error}") from None


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
            raise ValueError(f"{_sentence(error)} Method {self.method!r} has these options: {names}") from None

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

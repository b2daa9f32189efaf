"""Options that say which visual tokens are kept.

The options of a method are the fields of its class. :class:`Pruning` accepts them beside its own fields.
"""

import os
from collections.abc import Sequence
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

from tops_engine.budget import (
    Allocation,
    BudgetPer,
    Keep,
    MeanOver,
    Preset,
    Stage,
    budgets_text,
    read_budgets,
    read_keep,
)
from tops_engine.errors import BudgetError, InvalidInput, listed, quote
from tops_engine.methods import METHODS, Method, Positions, Rectify
from tops_engine.methods.composition import method_named
from tops_engine.methods.file_option import FileOption
from tops_engine.settings.allocation import allocation_words, check_allocation
from tops_engine.settings.base import Settings, error_sentence
from tops_engine.settings.cascade import CONFIDENT, CONFIDENT_OVER, ConfidentBy, cascade_words, check_cascade
from tops_engine.settings.cost_limits import UNITS, CostLimit, check_cost_limit, cost_limit
from tops_engine.settings.method_options import file_options, options_of, presets, with_settings_of_objects
from tops_engine.settings.rectify import check_rectify, rectify_words
from tops_engine.settings.tower import check_tower, tower_words
from tops_engine.tower import Dedup, TowerOptions

SCHEDULE_RULE = "a schedule is (layer, tokens) pairs: ascending layers, at least one token, never more than before"


class Pruning(Settings):
    """Which visual tokens to keep: the method, the budget and the method's own options.

    Example: ``Pruning(method="tops", keep=0.3, alpha=0.4, raters="last")``. The options of a method are the fields of
    its class (``METHODS["tops"].model_fields``). An option that the method does not have raises
    :class:`~tops_engine.errors.InvalidInput`.
    """

    model_config = ConfigDict(extra="allow")

    method: str = Field(
        default="tops",
        description="Pruning method, or two: divprune+fastv prunes by the first before the language model and by the "
        "second between its layers.",
    )
    keep: Keep | tuple[Keep, ...] = Field(
        default=0.222,
        description="Visual tokens to keep, averaged over the layers of the language model: a fraction up to 1.0, or a "
        "number of tokens a picture (a video counts as one picture). Several rising budgets (0.111+0.5) are a cascade: "
        "an answer of which the model is not sure is written again with the next one.",
    )
    confident: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Of a cascade: the probability of the first tokens of an answer from which on the model counts as "
        "sure; unset is 0.5. `tops tune` finds it on your pictures.",
    )
    confident_over: int | None = Field(
        default=None,
        ge=1,
        description="Of a cascade: how many first tokens that is, or all of a shorter answer; unset is 16.",
    )
    confident_by: ConfidentBy | None = Field(
        default=None,
        description="Of a cascade: the probability of these tokens together (joint), or the mean of their "
        "probabilities, which suits long answers; unset is joint.",
    )
    flops: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Instead of keep: the most FLOPs of reading the prompt, as a share of the unpruned prompt's.",
    )
    kv_mb: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Instead of keep: the most MiB of keys and values of a prompt with an answer of max_tokens.",
    )
    first_token_ms: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Instead of keep: the most milliseconds to the first token, by what `tops doctor --measure` "
        "measured of the model on this device.",
    )
    schedule: str | tuple[Stage, ...] | None = Field(
        default=None,
        description="Instead of keep: a preset of a paper (llava-1.5-7b/64), or layer:tokens pairs (0:256,12:64).",
    )
    allocation: Allocation = Field(
        default="fixed",
        description="How the budget is divided among pictures that are asked about together, with keep as the mean: "
        "equally (fixed), or so that the tokens of each stand for an equal share of it (coverage, erank, spectral).",
    )
    budget_per: BudgetPer = Field(
        default="picture",
        description="Choose the tokens of each picture alone, or of all pictures of a prompt together, so that they go "
        "to what no other picture shows.",
    )
    keep_min: Keep | None = Field(
        default=None,
        description="With allocation or budget_per: the least to keep of a picture, as a layer-average; unset is a "
        "quarter of keep.",
    )
    keep_max: Keep | None = Field(
        default=None,
        description="With allocation: the most to keep of a picture, as a layer-average; unset is four times keep.",
    )
    mean_over: MeanOver = Field(
        default="batch",
        description="With allocation: keep is the mean of the pictures asked about together (batch), or of all that "
        "the engine is asked about one after another (stream), which it never exceeds.",
    )
    merge: bool = Field(
        default=False,
        description="Average each visual token that is dropped before the language model with the kept one that is "
        "most similar to it.",
    )
    rectify: Rectify = Field(
        default="none",
        description="Make up for the attention that tokens dropped before the language model leave (restore): half of "
        "the budget stands for groups of them, and the prompt attends to each token by what it stands for.",
    )
    dedup: Dedup = Field(
        default="none",
        description="Encode equal pictures, tiles and frames once, which changes nothing but rounding (exact), or "
        "also patches equal to their neighbour, which changes the features of a picture somewhat (patches, Qwen-VL "
        "only).",
    )
    tower_keep: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Fraction of a picture's patches that the vision tower reads from tower_layer on; keep then "
        "chooses among their tokens. At 1.0 the tower runs as it is.",
    )
    tower_layer: int | None = Field(
        default=None,
        ge=1,
        description="With tower_keep: the first layer of the vision tower that reads fewer patches; unset is the "
        "middle one.",
    )
    positions: Positions | None = Field(
        default=None,
        description="Position ids after pruning: contiguous (renumbered) or original; unset takes the default of the "
        "method. Models with 3-D positions (Qwen-VL) always keep the original ones.",
    )

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            method: str = ...,
            keep: Keep | Sequence[Keep] | str = ...,
            confident: float | None = ...,
            confident_over: int | None = ...,
            confident_by: ConfidentBy | None = ...,
            flops: float | None = ...,
            kv_mb: float | None = ...,
            first_token_ms: float | None = ...,
            schedule: object = ...,
            allocation: Allocation = ...,
            budget_per: BudgetPer = ...,
            keep_min: Keep | str | None = ...,
            keep_max: Keep | str | None = ...,
            mean_over: MeanOver = ...,
            merge: bool | str = ...,
            rectify: Rectify = ...,
            dedup: Dedup = ...,
            tower_keep: float | str = ...,
            tower_layer: int | str | None = ...,
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
        """Bring values into the form of JSON, so that settings equal those read from their own JSON."""
        return {name: _plain(value) for name, value in data.items()} if isinstance(data, dict) else data

    @model_validator(mode="before")
    @classmethod
    def _settings_of_objects(cls, data: Any) -> Any:
        return with_settings_of_objects(data) if isinstance(data, dict) else data

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return method_named(value).name

    @field_validator("keep", mode="before")
    @classmethod
    def _fraction_or_count(cls, value: object) -> Keep | tuple[Keep, ...]:
        return read_budgets(value)

    @field_validator("keep_min", "keep_max", mode="before")
    @classmethod
    def _fraction_or_count_or_unset(cls, value: object) -> Keep | None:
        return None if value is None else read_keep(value)

    @field_validator("schedule", mode="before")
    @classmethod
    def _pairs_as_text(cls, value: object) -> object:
        """Read ``0:256,12:64,24:32``, which users type."""
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
            raise ValueError(f"The schedule has no preset {quote(value)}; choose one of {listed(known)}")
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
        has_keep = self.keep != type(self).model_fields["keep"].default
        if self.schedule is not None and has_keep:
            raise ValueError("keep and schedule both set the budget; give one of them")
        check_cost_limit(self, has_keep, self.schedule is not None)
        check_cascade(self)
        method = self.method_instance
        if self.merge and not method.prunes_before_the_llm:
            raise ValueError(f"merge needs a method that prunes before the language model; {self.method!r} does not")
        check_rectify(self, method)
        stages = self._preset.stages if self._preset else self.schedule
        for stage in stages or ():
            assert isinstance(stage, Stage)
            if not (method.prunes_before_the_llm if stage.layer == 0 else method.prunes_between_layers):
                where = "before the language model" if stage.layer == 0 else f"at layer {stage.layer}"
                raise ValueError(f"The schedule prunes {where}, where method {self.method!r} does not choose tokens")
        return self

    @model_validator(mode="after")
    def _allocation_fits(self) -> Self:
        for step in self.steps:
            check_allocation(step)
        return self

    @model_validator(mode="after")
    def _tower_fits(self) -> Self:
        check_tower(self)
        return self

    @field_serializer("schedule")
    def _plain_schedule(self, value: str | tuple[Stage, ...] | None) -> object:
        return [list(stage) for stage in value] if isinstance(value, tuple) else value

    @cached_property
    def method_instance(self) -> Method:
        """The method with its options, ready to select tokens."""
        known = options_of(self.method)
        published = self._preset.options if self._preset else {}
        options: dict[str, Any] = {name: value for name, value in published.items() if name in known}
        options |= self.model_extra or {}
        try:
            return method_named(self.method)(**options)
        except ValidationError as error:
            names = listed(known) or "none"
            raise ValueError(f"{error_sentence(error)} Method {self.method!r} has these options: {names}") from None

    @property
    def steps(self) -> tuple[Self, ...]:
        """The prunings of a cascade, each with one budget; of a single budget, the pruning itself."""
        if not isinstance(self.keep, tuple):
            return (self,)
        return tuple(self.with_budget(keep) for keep in self.keep)

    @property
    def budget(self) -> Keep:
        """``keep``, where it is a single budget.

        Raises
        ------
        InvalidInput
            If this is a cascade, or a limit of cost sets the budget.
        """
        if isinstance(self.keep, tuple):
            raise InvalidInput(f"keep={budgets_text(self.keep)} is a cascade, and this needs a single budget.")
        if self.cost_limit is not None:
            raise InvalidInput(f"{self.cost_limit} is a limit of cost, and this needs a budget in tokens; give keep.")
        return self.keep

    def with_budget(self, keep: Keep) -> Self:
        """Return the same pruning with a single budget in place of what sets it."""
        unset = dict.fromkeys([*UNITS, "confident", "confident_over", "confident_by", "schedule"])
        return self.model_copy(update={"keep": keep, **unset})

    @property
    def cost_limit(self) -> CostLimit | None:
        """The limit of cost that sets the budget, None if ``keep`` or ``schedule`` does."""
        return cost_limit(self)

    @property
    def is_sure_from(self) -> float:
        """The probability from which on a cascade takes an answer as sure."""
        return CONFIDENT if self.confident is None else self.confident

    @property
    def decides_after(self) -> int:
        """The number of tokens after which a cascade decides at the latest."""
        return CONFIDENT_OVER if self.confident_over is None else self.confident_over

    def stages(self, num_visual_tokens: int, num_layers: int, keep: Keep | None = None) -> tuple[Stage, ...]:
        """Return the number of tokens of an image at each stage.

        Parameters
        ----------
        keep : the image's own budget, in place of ``keep`` and ``schedule``.

        Raises
        ------
        BudgetError
            If ``keep`` leaves less than one token, or the schedule names a layer the model does not have.
        """
        if keep is not None or self.schedule is None:
            return self.method_instance.plan(num_visual_tokens, num_layers, self.budget if keep is None else keep)
        stages = self._preset.stages_of(num_visual_tokens) if self._preset else self.schedule
        assert isinstance(stages, tuple)
        if stages[-1].layer >= num_layers:
            raise BudgetError(f"The schedule prunes at layer {stages[-1].layer}; the model has {num_layers} layers.")
        return tuple(Stage(stage.layer, min(stage.num_tokens, num_visual_tokens)) for stage in stages)

    @property
    def _preset(self) -> Preset | None:
        return presets(self.method)[self.schedule] if isinstance(self.schedule, str) else None

    @property
    def budget_text(self) -> str:
        """The budget as it is typed: ``0.222``, ``0.111+0.5``, ``flops=0.3``, ``llava-1.5-7b/64``, ``0:256,12:64``."""
        if self.cost_limit is not None:
            return str(self.cost_limit)
        if self.schedule is None:
            return budgets_text(self.keep)
        if isinstance(self.schedule, str):
            return self.schedule
        return ",".join(f"{stage.layer}:{stage.num_tokens}" for stage in self.schedule)

    @property
    def label(self) -> str:
        """The method with the options given for it, such as ``tops:lambda=2.0:normalization=minmax``.

        An object that was given as a file is named by its file.
        """
        given, values = self.model_extra or {}, self.method_instance.model_dump(mode="json", by_alias=True)
        objects = file_options(self.method)
        words = [self.method, *(["merge=true"] if self.merge else []), *rectify_words(self), *allocation_words(self)]
        words += [*cascade_words(self), *tower_words(self)]
        for name in [name for name in values if name in given]:
            value = values[name]
            if name in objects and value is not None:
                value = given[name] if isinstance(given[name], str) else objects[name].read(value).label
            text = str(value).lower() if isinstance(value, bool) else value
            words.append(f"{name}={'+'.join(map(str, value)) if isinstance(value, list) else text}")
        return ":".join(words)

    @classmethod
    def from_label(cls, label: str, keep: Keep | tuple[Keep, ...] | str) -> "Pruning":
        """Return the pruning of a :attr:`label` at a budget: ``keep``, or a limit of cost such as ``flops=0.3``.

        Raises
        ------
        InvalidInput
            If the label is not of that form, or an option is not allowed.
        """
        method, *options = label.strip().split(":")
        pairs = [option.partition("=") for option in options]
        if not all(equals for _, equals, _ in pairs):
            raise InvalidInput(
                f"{quote(label)} is not a method with options; write tops:lambda=2.0:normalization=minmax."
            )
        given: dict[str, Any] = {name: value for name, _, value in pairs}
        name, equals, value = str(keep).partition("=")
        budget: dict[str, Any] = {name: value} if equals else {"keep": keep}
        if equals and name not in UNITS:
            raise InvalidInput(f"{quote(keep)} is no budget; give a value of keep, or {listed(UNITS)} as flops=0.3.")
        return cls(method=method, **budget, **given)

    @property
    def tower_options(self) -> TowerOptions:
        """How the vision tower runs."""
        return TowerOptions(self.dedup, self.tower_keep, self.tower_layer)

    def before_the_llm(self) -> "Pruning":
        """Return the same pruning without the stages between layers, where the method has an option for that.

        An option that was given stays as it is.
        """
        options = method_named(self.method).first_stage_options
        given = self.model_dump(mode="json", exclude_unset=True)
        return self if options.keys() <= given.keys() else Pruning(**{**options, **given})

    def resolved(self) -> dict[str, Any]:
        """Return all options as they run, JSON-ready: those given, those of the preset and the method's defaults."""
        options = self.method_instance.model_dump(mode="json", by_alias=True)
        return self.model_dump(mode="json") | options | {"positions": self.resolved_positions}

    @property
    def resolved_positions(self) -> Positions:
        if self.rectify != "none":
            return "original"
        return self.positions or self.method_instance.default_positions


def pruning_fields() -> dict[str, tuple[FieldInfo, list[str]]]:
    """Return all options that :class:`Pruning` takes, the methods' own included.

    Returns
    -------
    For each name that users write, the field and the methods that have the option; [] is every method.
    """
    fields: dict[str, tuple[FieldInfo, list[str]]] = {name: (field, []) for name, field in Pruning.model_fields.items()}
    for method in METHODS:
        for name, field in options_of(method).items():
            fields.setdefault(name, (field, []))[1].append(method)
    return fields


def _plain(value: object) -> object:
    """Return the value as it comes back from JSON."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, FileOption):
        return value.model_dump(mode="json")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value

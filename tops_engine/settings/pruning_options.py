"""The options of pruning that are common to all methods, and what follows from them directly."""

import os
from functools import cached_property
from typing import Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

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
from tops_engine.errors import InvalidInput, listed
from tops_engine.methods import Method, Positions, Rectify
from tops_engine.methods.composition import method_named
from tops_engine.methods.file_option import FileOption
from tops_engine.settings.base import Settings, error_sentence
from tops_engine.settings.cost_limits import UNITS, CostLimit
from tops_engine.settings.method_options import options_of, presets, with_settings_of_objects
from tops_engine.settings.schedule import check_schedule, read_schedule
from tops_engine.tower import Dedup

#: How a cascade rates an answer: by the probability of its first tokens together, or by the mean of theirs.
ConfidentBy = Literal["joint", "mean"]


class PruningOptions(Settings):
    """The fields of :class:`~tops_engine.settings.Pruning`, each checked by itself.

    Flags, widgets and JSON schemas list the options in the order in which they are defined here. ``Pruning`` checks
    that they fit each other.
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
    def _stages_or_preset(cls, value: object) -> object:
        return read_schedule(value)

    @field_validator("schedule")
    @classmethod
    def _sound_schedule(
        cls, value: str | tuple[Stage, ...] | None, info: ValidationInfo
    ) -> str | tuple[Stage, ...] | None:
        check_schedule(value, info.data.get("method"))
        return value

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
    def _preset(self) -> Preset | None:
        """The preset that ``schedule`` names, None if it names none."""
        return presets(self.method)[self.schedule] if isinstance(self.schedule, str) else None

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

    @property
    def cost_limits(self) -> list[CostLimit]:
        """The limits of cost that are given; ``Pruning`` allows one."""
        return [CostLimit(name, getattr(self, name)) for name in UNITS if getattr(self, name) is not None]

    @property
    def cost_limit(self) -> CostLimit | None:
        """The limit of cost that sets the budget, None if ``keep`` or ``schedule`` does."""
        return next(iter(self.cost_limits), None)


def _plain(value: object) -> object:
    """Return the value as it comes back from JSON."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, FileOption):
        return value.model_dump(mode="json")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value

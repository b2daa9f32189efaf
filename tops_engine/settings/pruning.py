"""Options that say which visual tokens are kept.

The options of a method are the fields of its class. :class:`Pruning` accepts them beside its own fields.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator
from pydantic.fields import FieldInfo

from tops_engine.budget import Allocation, BudgetPer, Keep, MeanOver, Stage, budgets_text
from tops_engine.errors import BudgetError, InvalidInput, listed, quote
from tops_engine.methods import METHODS, Method, Positions, Rectify
from tops_engine.methods.composition import method_named
from tops_engine.settings.allocation import allocation_words, check_allocation
from tops_engine.settings.cascade import CONFIDENT, CONFIDENT_OVER, cascade_words, check_cascade
from tops_engine.settings.cost_limits import UNITS, check_cost_limit
from tops_engine.settings.dropped_tokens import check_dropped_tokens, dropped_token_words
from tops_engine.settings.method_options import file_options, options_of
from tops_engine.settings.pruning_options import ConfidentBy, PruningOptions
from tops_engine.settings.schedule import check_stages
from tops_engine.settings.tower import check_tower, tower_words
from tops_engine.tower import Dedup, TowerOptions


class Pruning(PruningOptions):
    """Which visual tokens to keep: the method, the budget and the method's own options.

    Example: ``Pruning(method="tops", keep=0.3, alpha=0.4, raters="last")``. The options of a method are the fields of
    its class (``METHODS["tops"].model_fields``). An option that the method does not have raises
    :class:`~tops_engine.errors.InvalidInput`.
    """

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

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        self._check_budget()
        check_cascade(self)
        method = self.method_instance  # whose options are checked here
        check_dropped_tokens(self)
        self._check_stages(method)
        for step in self.steps:
            check_allocation(step)
        check_tower(self)
        return self

    def _check_budget(self) -> None:
        given = [limit.name for limit in self.cost_limits]
        if self.schedule is not None:
            given.append("schedule")
        if self.keep != type(self).model_fields["keep"].default:
            given.append("keep")
        if len(given) > 1:
            raise ValueError(f"{given[1]} and {given[0]} both set the budget; give one of them")
        if self.cost_limit is not None:
            check_cost_limit(self.cost_limit, self.allocation, self.method_instance)

    def _check_stages(self, method: Method) -> None:
        stages = self._preset.stages if self._preset else self.schedule
        if stages is not None:
            assert not isinstance(stages, str)
            check_stages(stages, method)

    @property
    def steps(self) -> tuple[Self, ...]:
        """The prunings of a cascade, each with one budget; of a single budget, the pruning itself."""
        if not isinstance(self.keep, tuple):
            return (self,)
        return tuple(self.with_budget(keep) for keep in self.keep)

    def with_budget(self, keep: Keep) -> Self:
        """Return the same pruning with a single budget in place of what sets it."""
        unset = dict.fromkeys([*UNITS, "confident", "confident_over", "confident_by", "schedule"])
        return self.model_copy(update={"keep": keep, **unset})

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
        words = [self.method, *dropped_token_words(self), *allocation_words(self)]
        words += [*cascade_words(self), *tower_words(self)]
        if self.positions not in (None, self.method_instance.default_positions):
            words.append(f"positions={self.positions}")
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

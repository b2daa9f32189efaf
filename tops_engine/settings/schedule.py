"""The option ``schedule``: a preset of a paper, or the stages of pruning."""

from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from tops_engine.budget import Stage
from tops_engine.errors import listed, quote
from tops_engine.methods import Method
from tops_engine.settings.method_options import presets

SCHEDULE_RULE = "a schedule is (layer, tokens) pairs: ascending layers, at least one token, never more than before"


def read_schedule(value: object) -> object:
    """Return the stages that were given as pairs, or as text such as ``0:256,12:64``; the name of a preset as it is.

    Raises
    ------
    ValueError
        If the value is none of these.
    """
    if value is None or (isinstance(value, str) and ":" not in value):
        return value
    pairs = [part.split(":") for part in value.split(",")] if isinstance(value, str) else value
    try:
        return TypeAdapter(tuple[Stage, ...]).validate_python(pairs)
    except ValidationError:
        raise ValueError(SCHEDULE_RULE) from None


def check_schedule(schedule: str | tuple[Stage, ...] | None, method: str | None) -> None:
    """Check that the method has the preset, or that the stages follow each other.

    Raises
    ------
    ValueError
        If not.
    """
    if isinstance(schedule, str) and (known := presets(method)) and schedule not in known:
        raise ValueError(f"The schedule has no preset {quote(schedule)}; choose one of {listed(known)}")
    if isinstance(schedule, tuple):
        layers = [stage.layer for stage in schedule]
        counts = [stage.num_tokens for stage in schedule]
        if (
            not schedule
            or min(layers) < 0
            or min(counts) < 1
            or layers != sorted(set(layers))
            or counts != sorted(counts, reverse=True)
        ):
            raise ValueError(SCHEDULE_RULE)


def check_stages(stages: Sequence[Stage], method: Method) -> None:
    """Check that the method prunes at each of the stages.

    Raises
    ------
    ValueError
        If it does not.
    """
    for stage in stages:
        if not (method.prunes_before_the_llm if stage.layer == 0 else method.prunes_between_layers):
            where = "before the language model" if stage.layer == 0 else f"at layer {stage.layer}"
            raise ValueError(f"The schedule prunes {where}, where method {method.name!r} does not choose tokens")

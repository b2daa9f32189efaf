"""Which models run, which methods apply to them, and what the tests show of them: what ``tops models`` prints."""

from pydantic import BaseModel

from tops_engine.families import FAMILIES, Family
from tops_engine.methods import METHODS, Method


class ModelType(BaseModel):
    """One kind of checkpoint, by the ``model_type`` of its config.

    Attributes
    ----------
    checkpoints : some of those published.
    methods, other_methods : names of the pruning methods that run with their default options, and of those that do not.
    videos : whether it answers questions about videos.
    checked : what the tests show of it on small random checkpoints.
    """

    model_type: str
    checkpoints: list[str]
    methods: list[str]
    other_methods: list[str]
    videos: bool
    checked: list[str]


def model_types() -> list[ModelType]:
    """Everything that runs, from what families and methods say of themselves."""
    return [_describe(model_type, family) for model_type, family in FAMILIES.items()]


def applies(method: type[Method], family: type[Family]) -> bool:
    """Whether a method with its default options runs with the models of a family."""
    return family.clip_tower or "clip" not in method.model_fields


def _describe(model_type: str, family: type[Family]) -> ModelType:
    applicable = {name: applies(method, family) for name, method in METHODS.items()}
    return ModelType(
        model_type=model_type,
        checkpoints=list(family.checkpoints[model_type]),
        methods=[name for name, runs in applicable.items() if runs],
        other_methods=[name for name, runs in applicable.items() if not runs],
        videos=family.takes_videos,
        checked=[*family.checked, *(["videos as generate"] if family.takes_videos else [])],
    )

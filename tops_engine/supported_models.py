"""The models that run, the methods that apply to them, and what the tests show of them."""

import json
from functools import cache
from importlib.resources import files

from pydantic import BaseModel

from tops_engine.families import FAMILIES, Family
from tops_engine.methods import METHODS, Method
from tops_engine.methods.resize import Resize


class ModelType(BaseModel):
    """One kind of checkpoint, by the ``model_type`` of its config.

    Attributes
    ----------
    checkpoints : some of those published.
    methods : names of the pruning methods that run with their default options.
    other_methods : names of the methods that do not.
    videos : whether the model answers questions about videos.
    checked : what the tests of this project show of the model type, on small random checkpoints; empty where it is not
        tested.
    """

    model_type: str
    checkpoints: list[str]
    methods: list[str]
    other_methods: list[str]
    videos: bool
    checked: list[str]


def model_types() -> list[ModelType]:
    """Describe every model type that runs, in the order of their names."""
    return [_describe(model_type, family) for model_type, family in FAMILIES.items()]


def applies(method: type[Method], family: type[Family]) -> bool:
    """Return whether a method with its default options runs with the models of a family."""
    if issubclass(method, Resize):
        return not family.one_size
    return family.clip_tower or "clip" not in method.model_fields


@cache
def recorded_checks() -> dict[str, list[str]]:
    """Return what the tests showed of each model type when ``families/checked.json`` was written.

    ``python -m tools.record_checked`` runs the tests and writes the file. A test compares it with their results.
    """
    text = files("tops_engine.families").joinpath("checked.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _describe(model_type: str, family: type[Family]) -> ModelType:
    applicable = {name: applies(method, family) for name, method in METHODS.items()}
    return ModelType(
        model_type=model_type,
        checkpoints=list(family.checkpoints[model_type]),
        methods=[name for name, runs in applicable.items() if runs],
        other_methods=[name for name, runs in applicable.items() if not runs],
        videos=family.takes_videos,
        checked=recorded_checks().get(model_type, []),
    )

"""The models that run, the methods that apply to them, and what the tests show of them."""

import json
from functools import cache
from importlib.resources import files

from pydantic import BaseModel

from tops_engine.families import FAMILIES, Family
from tops_engine.methods import METHODS, Method
from tops_engine.methods.resize import Resize


class Savings(BaseModel):
    """What pruning saves on the sizes of a published checkpoint, by formula, as fractions of the unpruned model.

    Attributes
    ----------
    model_type, checkpoint : whose sizes they are.
    visual_tokens : of the picture.
    prefill : FLOPs of the language model for reading the prompt.
    prefill_first : the same with ``stages=first``, where nothing is dropped between layers.
    kv : bytes of keys, values and states at the end of the answer.
    answer : FLOPs of vision tower, prefill and decoding.
    """

    model_type: str
    checkpoint: str
    visual_tokens: int
    prefill: float
    prefill_first: float
    kv: float
    answer: float


class PublishedSavings(BaseModel):
    """The savings on published sizes, the largest share of a whole answer first.

    Attributes
    ----------
    keep : the budget.
    picture : width and height of the picture in the question, in pixels.
    text, new : tokens of the question and of the answer.
    """

    keep: float
    picture: tuple[int, int]
    text: int
    new: int
    rows: list[Savings]

    @property
    def question(self) -> str:
        """What was computed, in words."""
        width, height = self.picture
        return f"a picture of {width:,} x {height} pixels, {self.text} tokens of text and {self.new} of the answer"


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
    savings : what pruning saves on published sizes of the model type; empty where it was not computed.
    """

    model_type: str
    checkpoints: list[str]
    methods: list[str]
    other_methods: list[str]
    videos: bool
    checked: list[str]
    savings: list[Savings]


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


@cache
def recorded_savings() -> PublishedSavings:
    """Return what ``python -m tools.record_savings`` computed for published sizes."""
    text = files("tops_engine.families").joinpath("savings.json").read_text(encoding="utf-8")
    return PublishedSavings.model_validate_json(text)


def _describe(model_type: str, family: type[Family]) -> ModelType:
    applicable = {name: applies(method, family) for name, method in METHODS.items()}
    return ModelType(
        model_type=model_type,
        checkpoints=list(family.checkpoints[model_type]),
        methods=[name for name, runs in applicable.items() if runs],
        other_methods=[name for name, runs in applicable.items() if not runs],
        videos=family.takes_videos,
        checked=recorded_checks().get(model_type, []),
        savings=[row for row in recorded_savings().rows if row.model_type == model_type],
    )

"""The protocols of the papers as data: benchmarks, models, published rows, and how scores are averaged."""

from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tops_engine.errors import InvalidInput, quote

#: The paper of TOPS.
DEFAULT_PAPER = "2606.27161"

#: The system prompt that LLaVA-1.5 was trained with; the chat template of the published checkpoint leaves it out.
VICUNA_SYSTEM_PROMPT = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


class Data(BaseModel):
    """The base class of what ``protocols.json`` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Benchmark(Data):
    """A benchmark and the task of lmms-eval that runs it.

    Attributes
    ----------
    score : how answers become a score: ``mean`` of the metric in percent, ``pope`` (mean F1 of its splits), ``mme``
        (sum over its categories), or the figure that lmms-eval ``reported``.
    questions : how many there are.
    factor : brings a reported figure to percent.
    scale : the score is divided by it where scores are averaged.
    judge : whether another model scores answers, by an OpenAI-compatible address.
    prepare : the function that makes its data, None for data on the hub.
    """

    task: str
    metric: str
    questions: int
    data: str
    score: Literal["mean", "pope", "mme", "reported"] = "mean"
    factor: float = 1.0
    scale: float = 1.0
    judge: bool = False
    prepare: Literal["mini_scenes"] | None = None
    note: str | None = None


class Model(Data):
    """A model as the papers run it.

    Attributes
    ----------
    visual_tokens : of a picture.
    preset : first part of the names of the TOPS presets with the paper's schedules and weights.
    unpad : as in ModelSpec.
    vicuna_system_prompt : whether conversations begin with :data:`VICUNA_SYSTEM_PROMPT`.
    pad_to_square : whether pictures are padded to a square, as LLaVA-1.5's own evaluation does; the processor of the
        published checkpoint cuts off what is not square.
    one_size : whether every picture is brought to one size, so that a smaller one saves nothing.
    smallest_picture : the visual tokens of the smallest picture that the model takes.
    """

    checkpoint: str
    parameters: float
    visual_tokens: int
    preset: str | None = None
    unpad: bool = True
    vicuna_system_prompt: bool = False
    pad_to_square: bool = False
    one_size: bool = False
    smallest_picture: int = 1


class Row(Data):
    """Published figures of a method at a budget: the relative average in percent, and scores where they are known."""

    method: str
    budget: int
    relative: float
    scores: dict[str, float] = {}


class Protocol(Data):
    """What a paper measured on one model.

    Attributes
    ----------
    tables : numbers of its tables; ``named`` by the source at hand, or ``assumed`` from the order of results.
    average : relative accuracy is the ratio of the mean scores, or the mean of the benchmarks' ratios.
    benchmarks : empty if the source at hand does not name them.
    budgets : layer-averages of visual tokens.
    unpruned : published scores of the unpruned model.
    """

    paper: str
    model: str
    tables: dict[str, Literal["named", "assumed"]]
    average: Literal["ratio of means", "mean of ratios"]
    benchmarks: list[str]
    budgets: list[int]
    rows: list[Row]
    unpruned: dict[str, float] = {}
    source: str | None = None

    def row(self, method: str, budget: int) -> Row | None:
        """Return the published figures of a method at a budget, None if there are none."""
        return next((row for row in self.rows if (row.method, row.budget) == (method, budget)), None)


class Protocols(Data):
    """All of ``protocols.json``."""

    benchmarks: dict[str, Benchmark]
    models: dict[str, Model]
    protocols: list[Protocol]


@cache
def read_protocols() -> Protocols:
    """Return the data of the package."""
    text = files("tops_engine.reproduction").joinpath("protocols.json").read_text(encoding="utf-8")
    return Protocols.model_validate_json(text)


def find_protocol(model: str, table: str | None = None, paper: str | None = None) -> Protocol:
    """Return the protocol of a model, of the TOPS paper if no paper is named.

    Raises
    ------
    InvalidInput
        If there is none.
    """
    known = read_protocols()
    if model not in known.models:
        raise InvalidInput(f"There is no protocol for {quote(model)}; choose one of {', '.join(known.models)}.")
    of_model = [one for one in known.protocols if one.model == model]
    wanted = paper or (DEFAULT_PAPER if any(one.paper == DEFAULT_PAPER for one in of_model) else of_model[0].paper)
    found = [one for one in of_model if one.paper == wanted and (table is None or table in one.tables)]
    if not found:
        names = [f"{one.paper} ({', '.join(one.tables) or 'no numbered table'})" for one in of_model]
        raise InvalidInput(f"There is no such table for {model}; there are: {'; '.join(names)}.")
    return found[0]


def relative_average(
    scores: dict[str, float], base: dict[str, float], average: Literal["ratio of means", "mean of ratios"]
) -> float:
    """Return the relative accuracy over several benchmarks in percent, as the paper computes it.

    Parameters
    ----------
    scores, base : by the names of the benchmarks; those of ``scores`` count.
    """
    scale = {name: read_protocols().benchmarks[name].scale for name in scores}
    if average == "mean of ratios":
        return 100 * fmean(scores[name] / base[name] for name in scores)
    return (
        100 * fmean(scores[name] / scale[name] for name in scores) / fmean(base[name] / scale[name] for name in scores)
    )

"""What a comparison over a data set measured: a record an answer, and their summary."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.markup import escape
from rich.table import Table

from tops_engine.comparison.fidelity import UNPRUNED, Fidelity, name
from tops_engine.comparison.tables import Notes, plain_table
from tops_engine.settings import Pruning


class Record(BaseModel):
    """One line of a results file: a pruning's answer to a question, or the error that kept it from answering.

    Attributes
    ----------
    pruning : all options as they ran.
    name : the pruning as one types it.
    fidelity, answer and figures : None where ``error`` says why; times in seconds.
    """

    model_config = ConfigDict(frozen=True)

    picture: str
    digest: str
    prompt: str
    pruning: dict[str, Any]
    name: str
    error: str | None = None
    answer: str | None = None
    fidelity: Fidelity | None = None
    layer_average: float | None = None
    first_token: float | None = None
    selection: float | None = None
    total: float | None = None
    flops: int | None = None

    @property
    def key(self) -> tuple[str, ...]:
        return (self.picture, self.digest, self.prompt, repr(sorted(self.pruning.items())))


@dataclass(frozen=True)
class Summary:
    """One pruning over all questions: medians of times, means of the rest.

    Attributes
    ----------
    num_answers : questions it answered; ``error`` is why it did not answer the others.
    """

    pruning: Pruning
    num_answers: int
    error: str | None
    agreement: float
    loss_increase: float
    first_token_kl: float
    layer_average: float
    first_token: float
    selection: float
    total: float
    flops: float


@dataclass(frozen=True)
class DataSetResult:
    """What was measured; the first summary is the unpruned model's."""

    title: str
    summaries: list[Summary]
    skipped: dict[str, str]

    def table(self) -> Table:
        """Latency first, FLOPs beside it, then fidelity; notes below say what is missing."""
        headings = (
            "first\ntoken ms",
            "select\nms",
            "in all\nms",
            "GFLOPs",
            "tokens\na layer",
            "same\n%",
            "loss +",
            "KL",
        )
        notes = Notes()
        names = ["unpruned" if summary.pruning == UNPRUNED else name(summary.pruning) for summary in self.summaries]
        marks = [notes.mark(summary.error) for summary in self.summaries]
        labels = [f"{label} {mark}".strip() for label, mark in zip(names, marks, strict=True)]
        table = plain_table(self.title, labels, *headings)
        for label, summary in zip(labels, self.summaries, strict=True):
            table.add_row(escape(label), *(_cells(summary) if summary.num_answers else [""] * len(headings)))
        table.caption = notes.caption(*[f"Skipped: {len(self.skipped)} of the pictures."] * bool(self.skipped))
        return table


def _cells(summary: Summary) -> list[str]:
    return [
        f"{1e3 * summary.first_token:.1f}",
        f"{1e3 * summary.selection:.1f}",
        f"{1e3 * summary.total:.1f}",
        f"{summary.flops / 1e9:.3g}",
        f"{summary.layer_average:.1f}",
        f"{100 * summary.agreement:.1f}",
        f"{summary.loss_increase:.3f}",
        f"{summary.first_token_kl:.3f}",
    ]


def summarise(pruning: Pruning, records: Sequence[Record]) -> Summary:
    key = repr(sorted(pruning.resolved().items()))
    own = [record for record in records if record.key[-1] == key]
    answered = [record for record in own if record.fidelity is not None]
    columns: dict[str, list[float]] = defaultdict(list)
    for record in answered:
        values = record.model_dump()
        for column, value in (values | values["fidelity"]).items():
            columns[column].append(value)

    def mean(column: str) -> float:
        return statistics.fmean(columns[column] or [0.0])

    def median(column: str) -> float:
        return statistics.median(columns[column] or [0.0])

    return Summary(
        pruning=pruning,
        num_answers=len(answered),
        error=next((record.error for record in own if record.error), None),
        agreement=mean("agrees"),
        loss_increase=mean("loss_increase"),
        first_token_kl=mean("first_token_kl"),
        layer_average=mean("layer_average"),
        first_token=median("first_token"),
        selection=median("selection"),
        total=median("total"),
        flops=mean("flops"),
    )

"""The results of a comparison over a folder: a record for each answer, and a summary for each pruning."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from tops_engine.evaluation.fidelity import Fidelity
from tops_engine.evaluation.prunings import UNPRUNED, pruning_name
from tops_engine.evaluation.tables import Notes, Table
from tops_engine.settings import Pruning


class Record(BaseModel):
    """One line of a results file: a pruning's answer to a question, or the error that prevented it.

    Attributes
    ----------
    pruning : all options of the run.
    name : the pruning as it is typed.
    answer, fidelity and figures : None if ``error`` is set; times in seconds.
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
        """The key of the record: picture, prompt and pruning."""
        return (self.picture, self.digest, self.prompt, repr(sorted(self.pruning.items())))


@dataclass(frozen=True)
class Summary:
    """One pruning over all questions: medians of the times in seconds, means of the other figures.

    Attributes
    ----------
    num_answers : how many questions were answered.
    error : why the other questions were not answered, if there are any.
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
class FolderResult:
    """The summaries of a comparison, the unpruned model's first, and the pictures that were skipped with the reason."""

    title: str
    summaries: list[Summary]
    skipped: dict[str, str]

    def table(self) -> Table:
        """Make a table with latency, FLOPs and fidelity of each pruning; notes say what is missing."""
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
        table, notes = Table.of_numbers(self.title, *headings), Notes()
        for summary in self.summaries:
            name = "unpruned" if summary.pruning == UNPRUNED else pruning_name(summary.pruning)
            table.add_row(
                f"{name} {notes.mark(summary.error)}".strip(), *(_cells(summary) if summary.num_answers else ())
            )
        skipped = [f"Skipped: {len(self.skipped)} of the pictures."] if self.skipped else []
        table.notes = [*skipped, *notes.lines()]
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
    """Summarise those of the records that belong to a pruning."""
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

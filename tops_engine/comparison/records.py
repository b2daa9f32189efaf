"""The results of a comparison over a folder: a record for each answer, and a summary for each pruning."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from tops_engine.evaluation.fidelity import Fidelity
from tops_engine.evaluation.halves import Halves, halves_table, split_by_resize
from tops_engine.evaluation.intervals import FEWEST_PICTURES, Interval, in_words, mean_interval, share_interval
from tops_engine.evaluation.prunings import UNPRUNED, pruning_name, settings_key
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
        return (self.picture, self.digest, self.prompt, settings_key(self.pruning))


@dataclass(frozen=True)
class Summary:
    """One pruning over all questions: medians of the times in seconds, means of the other figures.

    Attributes
    ----------
    num_answers : how many questions were answered.
    agreement, loss_increase : with 95 % intervals over pictures, agreement in percent; None without any answer.
    error : why the other questions were not answered, if there are any.
    """

    pruning: Pruning
    num_answers: int
    error: str | None
    agreement: Interval | None
    loss_increase: Interval | None
    first_token_kl: float
    layer_average: float
    first_token: float
    selection: float
    total: float
    flops: float


@dataclass(frozen=True)
class Difference:
    """One pruning minus another on the questions that both answered, with paired 95 % intervals over pictures.

    Attributes
    ----------
    name, against : the two prunings.
    agreement : in points of percent.
    loss_increase : in nats a token; below 0, the first one is closer to the unpruned model.
    """

    name: str
    against: str
    agreement: Interval
    loss_increase: Interval


@dataclass(frozen=True)
class FolderResult:
    """The results of a comparison.

    Attributes
    ----------
    summaries : one a pruning, the unpruned model's first.
    skipped : the pictures that were skipped, with the reason.
    differences : of every pruning from those that it was to be compared with.
    halves : the share of equal answers on easy and on hard questions at each budget at which ``resize`` was asked.
    """

    title: str
    summaries: list[Summary]
    skipped: dict[str, str]
    differences: list[Difference]
    halves: list[Halves]

    def table(self) -> Table:
        """Make a table with latency, FLOPs and fidelity of each pruning; notes say what is missing."""
        headings = (
            "first\ntoken ms",
            "select\nms",
            "in all\nms",
            "GFLOPs",
            "tokens\na layer",
            "same\n%",
            "95 %",
            "loss +",
            "95 %",
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

    def halves_table(self) -> Table | None:
        """Make a table of equal answers on easy and on hard questions; None if ``resize`` was not asked."""
        return halves_table(self.halves, "the same answer as unpruned")

    def differences_table(self) -> Table | None:
        """Make a table of the differences between prunings; None without any."""
        if not self.differences:
            return None
        headings = ("same\npoints", "95 %", "in words", "loss +", "95 %", "in words")
        table = Table.of_numbers("Differences on the same questions", *headings)
        for one in self.differences:
            table.add_row(
                f"{one.name} minus {one.against}",
                f"{one.agreement.value:+.1f}",
                one.agreement.text(1),
                in_words(one.agreement),
                f"{one.loss_increase.value:+.3f}",
                one.loss_increase.text(3),
                in_words(one.loss_increase, higher_is_better=False),
            )
        table.notes = [
            "Paired bootstrap over whole pictures. An interval that holds 0 says: the same within noise. Fewer than "
            f"{FEWEST_PICTURES} pictures have no interval."
        ]
        return table


def agreement_halves(prunings: Sequence[Pruning], records: Sequence[Record]) -> list[Halves]:
    """Return the shares of equal answers on the questions that ``resize`` answers as the unpruned model, and on others.

    Prunings that did not answer every question that was asked are left out.
    """
    agrees = {
        pruning: {
            record.key[:-1]: record.fidelity.agrees for record in _records_of(pruning, records) if record.fidelity
        }
        for pruning in prunings
    }
    questions = list(agrees[UNPRUNED])
    scores = {
        pruning: [float(of[question]) for question in questions]
        for pruning, of in agrees.items()
        if of.keys() >= set(questions)
    }
    pictures = [digest for _, digest, _ in questions]
    return split_by_resize(scores, pictures, {pruning: pruning_name(pruning) for pruning in scores})


def _cells(summary: Summary) -> list[str]:
    assert summary.agreement is not None
    assert summary.loss_increase is not None
    return [
        f"{1e3 * summary.first_token:.1f}",
        f"{1e3 * summary.selection:.1f}",
        f"{1e3 * summary.total:.1f}",
        f"{summary.flops / 1e9:.3g}",
        f"{summary.layer_average:.1f}",
        f"{summary.agreement.value:.1f}",
        summary.agreement.text(1),
        f"{summary.loss_increase.value:.3f}",
        summary.loss_increase.text(3),
        f"{summary.first_token_kl:.3f}",
    ]


def summarise(pruning: Pruning, records: Sequence[Record]) -> Summary:
    """Summarise those of the records that belong to a pruning."""
    own = _records_of(pruning, records)
    answered = [record for record in own if record.fidelity is not None]
    pictures = [record.digest for record in answered]
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
        agreement=share_interval([bool(one) for one in columns["agrees"]], pictures) if answered else None,
        loss_increase=mean_interval(columns["loss_increase"], pictures) if answered else None,
        first_token_kl=mean("first_token_kl"),
        layer_average=mean("layer_average"),
        first_token=median("first_token"),
        selection=median("selection"),
        total=median("total"),
        flops=mean("flops"),
    )


def difference(pruning: Pruning, other: Pruning, records: Sequence[Record]) -> Difference | None:
    """Compare two prunings on the questions that both answered; None without any."""
    found = [
        {record.key[:-1]: record.fidelity for record in _records_of(one, records) if record.fidelity is not None}
        for one in (pruning, other)
    ]
    shared = [key for key in found[0] if key in found[1]]
    if not shared:
        return None
    pairs = [(found[0][key], found[1][key]) for key in shared]
    pictures = [digest for _, digest, _ in shared]
    return Difference(
        name=pruning_name(pruning),
        against=pruning_name(other),
        agreement=mean_interval([100.0 * (one.agrees - two.agrees) for one, two in pairs], pictures),
        loss_increase=mean_interval([one.loss_increase - two.loss_increase for one, two in pairs], pictures),
    )


def _records_of(pruning: Pruning, records: Sequence[Record]) -> list[Record]:
    key = settings_key(pruning.resolved())
    return [record for record in records if record.key[-1] == key]

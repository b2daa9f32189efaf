"""The results of `tops bench`, their table and their plot."""

from itertools import groupby
from pathlib import Path

from pydantic import BaseModel

from tops_engine.evaluation.halves import Halves, halves_table
from tops_engine.evaluation.intervals import FEWEST_PICTURES
from tops_engine.evaluation.plotting import line_style, require_matplotlib, save_figure
from tops_engine.evaluation.tables import Notes, Table

INTERVAL_NOTE = (
    "95 %: interval of the column before it, from the same questions unpruned, whole scenes resampled. "
    "Methods whose intervals overlap may be the same within noise."
)


class Difference(BaseModel):
    """How far a row is from another one at the same budget, on the same questions.

    Attributes
    ----------
    against : the method of the other row.
    points : difference of relative accuracy in points of percent, over all questions (``all``) and over those with
        short answers (``short``).
    intervals : the paired 95 % interval of each, whole scenes resampled; None if there are too few scenes for one.
    in_words : "better", "worse", "same within noise" or "too few pictures".
    """

    against: str
    points: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    in_words: dict[str, str]


class BenchRow(BaseModel):
    """One method at one budget.

    Attributes
    ----------
    error : why the method could not run; the figures are None then.
    layer_average : visual tokens that a layer saw, mean over layers and questions.
    accuracy : share of right answers, by kind of question, over all questions (``all``), and over all whose answer is
        short (``short``) if some are lists.
    relative : ``accuracy["all"]`` divided by the unpruned model's.
    relative_interval : 95 % interval of ``relative``: paired with the unpruned model's answers, whole scenes resampled;
        None if there are too few scenes for one.
    budget : the budget as it is typed, such as ``0.222`` or ``0:24,4:8``; ``keep`` is None for a schedule.
    loss_increase : how much higher the loss is than unpruned on the unpruned model's answers, in nats a token, mean
        over questions.
    differences : from the methods that the run was asked to compare with.
    selection_ms, first_token_ms : milliseconds a question, its share of its batch; median over the timed batches.
    """

    method: str
    keep: float | int | None
    budget: str | None = None
    error: str | None = None
    layer_average: float | None = None
    accuracy: dict[str, float] = {}
    relative: float | None = None
    relative_interval: tuple[float, float] | None = None
    loss_increase: float | None = None
    selection_ms: float | None = None
    first_token_ms: float | None = None
    differences: list[Difference] = []

    @property
    def name(self) -> str:
        """Return the method and its budget, as every table names a pruning."""
        budget = self.budget or ("" if self.keep is None else str(self.keep))
        return f"{self.method} {budget}".strip()


class BenchResult(BaseModel):
    """The results of a run; the first row is the unpruned model, the second the oracle.

    Attributes
    ----------
    split : the scenes: ``test``, or ``confirm``, which nothing was ever tuned on.
    halves : the share of right answers on easy and on hard questions at each budget at which ``resize`` was measured.
    """

    model: str
    device: str
    split: str = "test"
    num_scenes: int
    num_questions: dict[str, int]
    batch_size: int
    rows: list[BenchRow]
    halves: list[Halves] = []

    def validity(self) -> str:
        """Return the figures of the controls as a sentence.

        The benchmark is valid if the oracle loses nothing and random choice at 5.6 % loses a lot.
        """
        unpruned, oracle = self.rows[:2]
        control = next(row for row in self.rows if (row.method, row.keep) == ("random", 0.056))
        difference = 100 * (oracle.accuracy["all"] - unpruned.accuracy["all"])
        lost = 100 * (1 - (control.relative or 0.0))
        return (
            f"Unpruned {100 * unpruned.accuracy['all']:.1f} %; only the objects' patches {difference:+.1f} points; "
            f"random 5.6 % loses {lost:.0f} % of it."
        )

    def table(self) -> Table:
        """Make a table with the unpruned model's accuracy in percent, and the other rows' relative to it."""
        kinds = [*self.num_questions, *(["short"] if "short" in self.rows[0].accuracy else []), "all"]
        scenes = "unseen scenes" if self.split == "test" else "scenes that confirm"
        title = f"{self.model}, {self.num_scenes} {scenes}, {self.device}: accuracy unpruned, then relative to it, %"
        names = [row.name for row in self.rows]
        names[:2] = ["unpruned", "objects only"]
        table = Table.of_numbers(title, *kinds, "95 %", "loss +", "select ms", "first token ms", "tokens")
        unpruned, notes = self.rows[0].accuracy, Notes()
        for name, row in zip(names, self.rows, strict=True):
            if row.error is not None:
                table.add_row(f"{name} {notes.mark(row.error)}")
                continue
            base = {kind: 1.0 if row is self.rows[0] else unpruned[kind] for kind in kinds}
            table.add_row(
                name,
                *(f"{100 * row.accuracy[kind] / base[kind]:.1f}" if base[kind] else "-" for kind in kinds),
                _percent(row.relative_interval),
                f"{row.loss_increase:.3f}",
                f"{row.selection_ms:.2f}",
                f"{row.first_token_ms:.2f}",
                f"{row.layer_average:.1f}",
            )
        table.notes = [self.validity(), INTERVAL_NOTE, *notes.lines()]
        return table

    def differences_table(self) -> Table | None:
        """Make a table of the differences between methods, in points of percent; None without any."""
        groups = [
            group
            for group in ("all", "short")
            if any(group in of.points for row in self.rows for of in row.differences)
        ]
        if not groups:
            return None
        headings = [heading for group in groups for heading in (group, "95 %", "in words")]
        table = Table.of_numbers("Difference at the same budget, points", *headings)
        for row in self.rows:
            for of in row.differences:
                cells = [cell for group in groups for cell in _cells(of, group)]
                table.add_row(f"{row.name} minus {of.against}", *cells)
        table.notes = [
            "Paired bootstrap over whole scenes. An interval that holds 0 says: the same within noise. Fewer than "
            f"{FEWEST_PICTURES} scenes have no interval."
        ]
        return table

    def halves_table(self) -> Table | None:
        """Make a table of right answers on easy and on hard questions; None if ``resize`` was not measured."""
        return halves_table(self.halves, "right answers")

    def plot(self, path: Path) -> None:
        """Draw accuracy and loss increase against the budget, one line per method."""
        pyplot = require_matplotlib("--plot")
        pruned = [row for row in self.rows[2:] if row.error is None]
        # The figure is as high as its legend, which has one line per method.
        height = max(4.6, 1.4 + 0.23 * len({row.method for row in pruned}))
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, height), layout="constrained")
        for number, (method, group) in enumerate(
            groupby(sorted(pruned, key=lambda row: row.method), key=lambda row: row.method)
        ):
            rows = sorted(group, key=lambda row: row.layer_average or 0)
            tokens = [row.layer_average for row in rows]
            left.plot(tokens, [100 * row.accuracy["all"] for row in rows], **line_style(number, method))
            right.plot(tokens, [row.loss_increase for row in rows], **line_style(number, method))
        unpruned, oracle = self.rows[:2]
        left.axhline(100 * unpruned.accuracy["all"], color="grey", linestyle="--", label="unpruned")
        right.axhline(0.0, color="grey", linestyle="--", label="unpruned")
        left.plot(oracle.layer_average, 100 * oracle.accuracy["all"], "k*", label="objects' patches only")
        right.plot(oracle.layer_average, oracle.loss_increase, "k*", label="objects' patches only")
        ticks = sorted({round(row.layer_average or 0) for row in pruned})
        for axes, label in ((left, "right answers, %"), (right, "loss increase, nats a token")):
            axes.set(xscale="log", xlabel="visual tokens (layer-average)", ylabel=label)
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
        right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        figure.suptitle(f"{self.model}, {self.num_scenes} unseen scenes")
        save_figure(figure, path)


def _cells(difference: Difference, group: str) -> tuple[str, str, str]:
    bounds = difference.intervals[group]
    interval = "-" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"
    return f"{difference.points[group]:+.1f}", interval, difference.in_words[group]


def _percent(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}"

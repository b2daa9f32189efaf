"""Sum up the measured batches of a benchmark: one row a pruning, with intervals and comparisons."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from tops_engine.bench.report import BenchRow, Difference
from tops_engine.evaluation.halves import Halves, split_by_resize
from tops_engine.evaluation.intervals import Interval, difference_interval, in_words, relative_interval
from tops_engine.evaluation.prunings import pruning_name
from tops_engine.settings import Pruning

#: The kind of question that is answered with a list of everything in the picture.
LIST_KIND = "describe"
#: All questions, and all whose answer is short.
ALL, SHORT = "all", "short"


class Measured(BaseModel):
    """One pruning on one batch of questions of a kind: a line of the results file.

    Attributes
    ----------
    right, tokens, losses : for each question, whether the answer is right, the layer-average of visual tokens, and the
        loss of the unpruned model's answer in nats a token.
    selection_ms, first_token_ms : milliseconds a question, if the batch was timed.
    """

    batch: int
    pruning: dict[str, Any]
    name: str
    kind: str
    error: str | None = None
    right: list[bool] = []
    tokens: list[float] = []
    losses: list[float] = []
    selection_ms: float | None = None
    first_token_ms: float | None = None


class Measurements:
    """The lines of every pruning, batch by batch in the same order.

    Parameters
    ----------
    lines : of each pruning, the lines of all batches.
    unpruned : the pruning that accuracy is relative to.
    seeds : the scene of each question.
    """

    def __init__(self, lines: dict[Pruning, list[Measured]], unpruned: Pruning, seeds: Sequence[int]) -> None:
        self.lines, self.unpruned, self.seeds = lines, unpruned, seeds

    def num_questions(self) -> dict[str, int]:
        """Return the number of questions of each kind."""
        counts: dict[str, int] = defaultdict(int)
        for line in self.lines[self.unpruned]:
            counts[line.kind] += len(line.right)
        return dict(sorted(counts.items()))

    def row(self, pruning: Pruning, method: str, against: Sequence[Pruning] = ()) -> BenchRow:
        """Return the row of a pruning.

        Parameters
        ----------
        method : the name of the method in the table.
        against : prunings to compare with, at the same budget; those that could not run are left out.
        """
        lines, base = self.lines[pruning], self.lines[self.unpruned]
        named: dict[str, Any] = {"method": method, "keep": None}
        if method == pruning.label:
            # A schedule or a limit of cost decides in place of keep, and a cascade has several.
            single = pruning.schedule is None and pruning.cost_limit is None and not isinstance(pruning.keep, tuple)
            named |= {"keep": pruning.keep if single else None, "budget": pruning.budget_text}
        error = self.error(pruning)
        if error is not None:
            return BenchRow(**named, error=error)
        accuracy = {kind: statistics.fmean(right) for kind, right in self._right(pruning).items()}
        losses = [statistics.fmean([loss for line in of for loss in line.losses]) for of in (lines, base)]
        interval = relative_interval(self._scores(pruning, ALL), self._scores(self.unpruned, ALL), self._scenes(ALL))
        bounds = interval.bounds
        return BenchRow(
            **named,
            relative_interval=None if bounds is None else (bounds[0] / 100, bounds[1] / 100),
            layer_average=statistics.fmean([tokens for line in lines for tokens in line.tokens]),
            accuracy=accuracy,
            relative=accuracy[ALL] / max(statistics.fmean(self._right(self.unpruned)[ALL]), 1e-9),
            loss_increase=losses[0] - losses[1],
            selection_ms=_median([line.selection_ms for line in lines]),
            first_token_ms=_median([line.first_token_ms for line in lines]),
            differences=[self._difference(pruning, other) for other in against if self.error(other) is None],
        )

    def halves(self, prunings: Sequence[Pruning]) -> list[Halves]:
        """Return the shares of right answers on the questions that ``resize`` answers, and on the others."""
        ran = [pruning for pruning in prunings if self.error(pruning) is None]
        scores = {pruning: self._scores(pruning, ALL) for pruning in ran}
        return split_by_resize(scores, self._scenes(ALL), {pruning: pruning_name(pruning) for pruning in ran})

    def error(self, pruning: Pruning) -> str | None:
        """Return why the pruning could not run, or None."""
        return next((line.error for line in self.lines[pruning] if line.error), None)

    def _difference(self, pruning: Pruning, other: Pruning) -> Difference:
        found = {group: self._interval(pruning, other, group) for group in (ALL, SHORT) if self._scenes(group)}
        return Difference(
            against=other.label,
            points={group: interval.value for group, interval in found.items()},
            intervals={group: interval.bounds for group, interval in found.items()},
            in_words={group: in_words(interval) for group, interval in found.items()},
        )

    def _interval(self, pruning: Pruning, other: Pruning, group: str) -> Interval:
        scores, against, base = (self._scores(one, group) for one in (pruning, other, self.unpruned))
        return difference_interval(scores, against, base, self._scenes(group))

    def _scores(self, pruning: Pruning, group: str) -> list[float]:
        """Return 1 for each right answer of the group and 0 for each wrong one."""
        return [float(right) for line in self._lines_of(pruning, group) for right in line.right]

    def _scenes(self, group: str) -> list[int]:
        """Return the scene of each question of the group."""
        kinds = [line.kind for line in self.lines[self.unpruned] for _ in line.right]
        return [seed for seed, kind in zip(self.seeds, kinds, strict=True) if group == ALL or kind != LIST_KIND]

    def _lines_of(self, pruning: Pruning, group: str) -> list[Measured]:
        return [line for line in self.lines[pruning] if group == ALL or line.kind != LIST_KIND]

    def _right(self, pruning: Pruning) -> dict[str, list[bool]]:
        """Return whether each answer is right: by kind, over all, and over short answers if there are lists too."""
        right: dict[str, list[bool]] = defaultdict(list)
        kinds = {line.kind for line in self.lines[pruning]}
        groups = [ALL, SHORT] if LIST_KIND in kinds and len(kinds) > 1 else [ALL]
        for line in self.lines[pruning]:
            right[line.kind] += line.right
        for group in groups:
            right[group] = [answer for line in self._lines_of(pruning, group) for answer in line.right]
        return dict(sorted(right.items()))


def _median(values: Sequence[float | None]) -> float:
    return statistics.median([value for value in values if value is not None])

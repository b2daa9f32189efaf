"""Easy and hard questions: those that a smaller picture of the same budget answers, and those that it does not.

The idea is that of VTC-Bench (arXiv 2510.07143): where a smaller picture is enough, a benchmark says little about
pruning. On its own halves ``resize`` has 100 % and 0 % by construction.
"""

from collections.abc import Hashable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from tops_engine.evaluation.intervals import mean_interval, share_interval
from tops_engine.evaluation.prunings import UNPRUNED
from tops_engine.evaluation.tables import Table
from tops_engine.methods.resize import Resize
from tops_engine.settings import Pruning

#: From this score on, between 0 and 1, a question counts as answered.
ANSWERED = 0.5


class HalfScore(BaseModel):
    """The score on easy or on hard questions.

    Attributes
    ----------
    questions : how many there are.
    percent, low, high : the mean score in percent with its 95 % interval over pictures, None if there are too few.
    """

    model_config = ConfigDict(frozen=True)

    questions: int
    percent: float
    low: float | None
    high: float | None

    def cells(self) -> tuple[str, str, str]:
        """Return the cells of a table: number of questions, score, interval."""
        interval = "-" if self.low is None else f"{self.low:.1f}-{self.high:.1f}"
        return str(self.questions), f"{self.percent:.1f}", interval


class Halves(BaseModel):
    """What one pruning scores on the questions that ``resize`` answers at the same budget, and on the others.

    Attributes
    ----------
    name : the pruning, or ``unpruned``.
    budget : the budget of the smaller picture, as it is typed.
    easy, hard : None if there is no such question.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    budget: str
    easy: HalfScore | None
    hard: HalfScore | None


def split_by_resize(
    scores: Mapping[Pruning, Sequence[float]], clusters: Sequence[Hashable], names: Mapping[Pruning, str]
) -> list[Halves]:
    """Split questions at each budget at which a smaller picture was asked, and score every pruning on both halves.

    Parameters
    ----------
    scores : of each pruning and question, from 0 to 1; every pruning has all questions.
    clusters : the picture that each question is about.
    names : of the prunings, in the table.

    Returns
    -------
    At each budget the unpruned model, then the prunings with that budget; empty if no smaller picture was asked.
    """
    smaller = {one.budget_text: one for one in scores if isinstance(one.method_instance, Resize)}
    found = []
    for budget, resized in smaller.items():
        easy = [score >= ANSWERED for score in scores[resized]]
        compared = [one for one in scores if one == UNPRUNED or one.budget_text == budget]
        found += [
            Halves(
                name="unpruned" if one == UNPRUNED else names[one],
                budget=budget,
                easy=_score(scores[one], clusters, easy),
                hard=_score(scores[one], clusters, [not is_easy for is_easy in easy]),
            )
            for one in compared
        ]
    return found


def halves_table(halves: Sequence[Halves], what: str) -> Table | None:
    """Make a table of easy and hard questions; None without any.

    Parameters
    ----------
    what : what the scores are, such as "right answers".
    """
    if not halves:
        return None
    headings = ("budget", "easy\nn", "%", "95 %", "hard\nn", "%", "95 %")
    table = Table.of_numbers(f"Questions that a smaller picture answers (easy) or not (hard): {what}", *headings)
    for one in halves:
        cells = [half.cells() if half is not None else ("0", "-", "-") for half in (one.easy, one.hard)]
        table.add_row(one.name, one.budget, *cells[0], *cells[1])
    table.notes = [
        "resize decides the halves, so it has about 100 % and 0 % there; compare the other rows. Its grid may be "
        "coarser than the budget: the first table says how many tokens it had."
    ]
    return table


def _score(scores: Sequence[float], clusters: Sequence[Hashable], chosen: Sequence[bool]) -> HalfScore | None:
    values = [score for score, is_chosen in zip(scores, chosen, strict=True) if is_chosen]
    pictures = [cluster for cluster, is_chosen in zip(clusters, chosen, strict=True) if is_chosen]
    if not values:
        return None
    if set(values) <= {0.0, 1.0}:
        share = share_interval([value == 1.0 for value in values], pictures)
    else:
        share = mean_interval([100 * value for value in values], pictures)
    return HalfScore(questions=len(values), percent=share.value, low=share.low, high=share.high)

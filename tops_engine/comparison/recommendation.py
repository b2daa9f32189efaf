"""Recommend a method by successive halving on a folder of pictures, without labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tops_engine.comparison.folder import FolderRun
from tops_engine.comparison.records import Record, Summary, difference, summarise
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput, listed
from tops_engine.evaluation.data_set import DataSet
from tops_engine.evaluation.intervals import FEWEST_PICTURES, Interval
from tops_engine.evaluation.prunings import pruning_name, without_unpruned
from tops_engine.evaluation.tables import Notes, Table
from tops_engine.progress import Progress, no_progress
from tops_engine.settings import Generation, Pruning

UNSURE = "A dropped candidate whose interval holds 0 may be as good as the nearest; more questions tell."


class Candidate(BaseModel):
    """What was measured of one pruning.

    Attributes
    ----------
    questions : how many it was asked; fewer than others if it was dropped before the end.
    loss_increase : how much less likely the unpruned model's answers became, in nats a token.
    same : share of answers equal to the unpruned model's, in percent.
    first_token : median seconds to the first token.
    behind : its loss increase minus that of the nearest one, on the questions that both answered, with its paired 95 %
        interval; None for the nearest one.
    dropped : whether it was dropped before the last round.
    error : why it cannot run; the other figures are None then.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    verdict: str
    questions: int = 0
    loss_increase: float | None = None
    same: float | None = None
    first_token: float | None = None
    behind: Interval | None = None
    dropped: bool = False
    error: str | None = None


class Recommendation(BaseModel):
    """The pruning to take at one budget.

    Attributes
    ----------
    sentence : the pruning with the reason for it.
    candidates : the recommended one first, then those of the last round, then the dropped ones, the last dropped first.
    """

    model_config = ConfigDict(frozen=True)

    pruning: Pruning
    sentence: str
    candidates: list[Candidate]

    def table(self) -> Table:
        """Make a table with a row for each candidate; notes name those that could not run."""
        headings = ("questions", "loss +", "same\n%", "first\ntoken ms", "loss behind\nthe nearest", "95 %", "verdict")
        table, notes = Table.of_numbers(f"Candidates at {self.pruning.budget_text}", *headings), Notes()
        for one in self.candidates:
            table.add_row(f"{one.name} {notes.mark(one.error)}".strip(), *_cells(one))
        table.notes = notes.lines()
        if any(one.dropped and one.behind is not None and not one.behind.differs_from(0.0) for one in self.candidates):
            table.notes.append(UNSURE)
        return table


def recommend(
    engine: Engine,
    data: DataSet,
    prunings: Sequence[Pruning],
    generation: Generation,
    path: Path | None = None,
    progress: Progress = no_progress,
    seed: int = 0,
) -> list[Recommendation]:
    """Find out which pruning to take at each budget, by successive halving (Jamieson and Talwalkar, arXiv 1502.07943).

    All candidates are asked a few questions. The half that stays nearest to the unpruned model (the smallest loss
    increase of its answers, then the most equal answers) is asked on, until twice as many questions were asked, and so
    on; the last two are asked all questions. Of those that noise cannot tell from the nearest one (the paired 95 %
    interval of the difference in loss holds 0), the one with the fastest first token is recommended. Candidates that
    cannot run are dropped at once.

    Parameters
    ----------
    prunings : the candidates, compared with those at the same budget.
    path : JSONL file as of :func:`~tops_engine.comparison.folder.compare_folder`; a run that was stopped continues it.
    progress : receives the number of questions.
    seed : the questions' random order follows from it.

    Raises
    ------
    BudgetError
        If no candidate is left at a budget, since those of the last round cannot run.
    InvalidInput
        If there are too few pictures, or a budget has one candidate only, or as of ``compare_folder``.
    """
    races: dict[str, _Race] = {}
    for pruning in without_unpruned(prunings):
        races.setdefault(pruning.budget_text, _Race(len(data))).candidates.append(pruning)
    for budget, race in races.items():
        if len(race.candidates) < 2:
            raise InvalidInput(f"There is nothing to choose from at {budget}; name two methods or more.")
    _check_pictures(len(data.pictures))
    run = FolderRun(engine, data, generation, path)
    progress(0, len(data))
    for number, question in enumerate(data.shuffled(seed), start=1):
        asked = [pruning for race in races.values() for pruning in race.candidates]
        if not asked:
            break
        answers = dict(zip(asked, run.ask(question, asked), strict=False))
        for race in races.values():
            race.add(answers)
        progress(number, len(data))
    progress(len(data), len(data))
    if not any(race.records for race in races.values()):
        raise data.nothing_asked()
    return [race.recommendation() for race in races.values()]


class _Race:
    """The candidates at one budget.

    Attributes
    ----------
    candidates : those that are still asked.
    dropped : those of earlier rounds, the last dropped first and each round in the order of its figures.
    failed : those that cannot run, with the reason.
    """

    def __init__(self, num_questions: int) -> None:
        self.num_questions = num_questions
        self.num_asked = 0
        self.next_end = FEWEST_PICTURES
        self.records: list[Record] = []
        self.candidates: list[Pruning] = []
        self.dropped: list[Pruning] = []
        self.failed: dict[Pruning, str] = {}

    def add(self, answers: Mapping[Pruning, Record]) -> None:
        """Take the answers to one question, empty if it was skipped, and drop candidates if it ends a round."""
        if not answers:
            return
        self.num_asked += 1
        for one in list(self.candidates):
            record = answers[one]
            self.records.append(record)
            if record.error is not None:
                self.failed[one] = record.error
                self.candidates.remove(one)
        if self._ends_round():
            ranked = self._ranked()
            half = (len(ranked) + 1) // 2
            self.candidates, self.dropped = ranked[:half], ranked[half:] + self.dropped
            self.next_end = 2 * self.num_asked

    def recommendation(self) -> Recommendation:
        """Decide among the candidates that remain.

        Raises
        ------
        BudgetError
            If none remains.
        InvalidInput
            If too few pictures could be read.
        """
        if not self.candidates:
            raise BudgetError(f"No candidate is left: {listed(self.failed.values())}")
        _check_pictures(len({record.digest for record in self.records}))
        ranked = self._ranked()
        summaries = {one: summarise(one, self.records) for one in [*ranked, *self.dropped]}
        nearest = ranked[0]
        behind = {one: self._behind(one, nearest) for one in summaries if one != nearest}
        alike = [one for one in ranked if one == nearest or not behind[one].differs_from(0.0)]
        best = min(alike, key=lambda one: summaries[one].first_token)
        verdicts = {one: f"dropped after {summaries[one].num_answers}" for one in self.dropped}
        verdicts |= {one: "same within noise" if one in alike else "worse" for one in ranked} | {best: "take it"}
        candidates = [
            _candidate(summaries[one], verdicts[one], behind.get(one), one in self.dropped)
            for one in dict.fromkeys([best, *summaries])
        ]
        failed = [
            Candidate(name=pruning_name(one), verdict="cannot run", error=error) for one, error in self.failed.items()
        ]
        others = [summaries[one] for one in alike if one != best]
        next_behind = behind.get(ranked[1]) if len(ranked) > 1 else None
        sentence = _sentence(summaries[best], others, len(summaries), next_behind)
        return Recommendation(pruning=best, sentence=sentence, candidates=candidates + failed)

    def _ends_round(self) -> bool:
        """Return whether half of the candidates is dropped now, which leaves the last two half of the questions."""
        num_candidates = len(self.candidates)
        if num_candidates <= 2 or self.num_asked >= self.num_questions:
            return False
        halvings = (num_candidates - 1).bit_length() - 1
        return self.num_asked >= max(self.next_end, self.num_questions >> halvings)

    def _ranked(self) -> list[Pruning]:
        return sorted(self.candidates, key=lambda one: _distance(summarise(one, self.records)))

    def _behind(self, one: Pruning, nearest: Pruning) -> Interval:
        found = difference(one, nearest, self.records)
        assert found is not None  # all candidates were asked the first round's questions
        return found.loss_increase


def _check_pictures(number: int) -> None:
    if number < FEWEST_PICTURES:
        raise InvalidInput(
            f"A recommendation needs {FEWEST_PICTURES} different pictures that can be read, and there are {number}; "
            "with fewer, differences cannot be told from noise."
        )


def _distance(summary: Summary) -> tuple[float, float]:
    """Return the sort key of how far a pruning is from the unpruned model."""
    assert summary.loss_increase is not None
    assert summary.agreement is not None
    return summary.loss_increase.value, -summary.agreement.value


def _candidate(summary: Summary, verdict: str, behind: Interval | None, dropped: bool) -> Candidate:
    loss, disagreement = _distance(summary)
    return Candidate(
        name=pruning_name(summary.pruning),
        verdict=verdict,
        questions=summary.num_answers,
        loss_increase=loss,
        same=-disagreement,
        first_token=summary.first_token,
        behind=behind,
        dropped=dropped,
    )


def _cells(one: Candidate) -> list[str]:
    if one.loss_increase is None or one.same is None or one.first_token is None:
        return ["", "", "", "", "", "", one.verdict]
    figures = [str(one.questions), f"{one.loss_increase:.3f}", f"{one.same:.1f}", f"{1e3 * one.first_token:.1f}"]
    behind = ["", ""]
    if one.behind is not None:
        behind = [f"{one.behind.value:.3f}", one.behind.text(3)]
    return [*figures, *behind, one.verdict]


def _sentence(best: Summary, others: Sequence[Summary], num_candidates: int, next_behind: Interval | None) -> str:
    """Return the recommendation with its reason.

    Parameters
    ----------
    others : the same as the best within noise, and slower.
    next_behind : how far the next candidate is behind, where there are no others.
    """
    loss, disagreement = _distance(best)
    start = f"Take {pruning_name(best.pruning)}: of {num_candidates} candidates, it"
    figures = (
        f"on {best.num_answers} questions (loss +{loss:.3f} nats a token, {-disagreement:.1f} % of the answers the same"
    )
    time = f"{1e3 * best.first_token:.1f}"
    if not others:
        margin = ""
        if next_behind is not None:
            margin = f"; the next one is {next_behind.value:.3f} [{next_behind.text(3, ', ')}] behind"
        figures += f"{margin}), and its first token comes after {time} ms."
        return f"{start} stays nearest to the unpruned model {figures}"
    names = listed(pruning_name(one.pruning) for one in others)
    times = ", ".join(f"{1e3 * one.first_token:.1f}" for one in others)
    return (
        f"{start} and {names} stay nearest to the unpruned model, the same within noise, {figures}), and it is the "
        f"fastest of them to the first token ({time} ms instead of {times})."
    )

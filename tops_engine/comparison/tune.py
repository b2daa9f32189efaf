"""The smallest budget, and the method, whose answers agree with the unpruned model's on the user's own data."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from tops_engine.budget import Keep
from tops_engine.comparison.fidelity import UNPRUNED, interval, name, same_text
from tops_engine.comparison.one_picture import cold_answer
from tops_engine.comparison.pictures import DataSet, progress_bar, report_skipped
from tops_engine.comparison.tables import plain_table
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput, TopsError
from tops_engine.settings import Generation, Pruning

#: Budgets that are tried, from small to large.
GRID: tuple[Keep, ...] = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Trial:
    """One pruning on the questions, up to where it could not reach the wanted agreement any more.

    Attributes
    ----------
    asked, agreed : questions, and those whose answer is the unpruned model's.
    first_token : median seconds to the first token.
    passed : whether all questions were asked and enough agreed.
    error : why it could not run.
    """

    pruning: Pruning
    asked: int
    agreed: int
    first_token: float
    passed: bool
    error: str | None = None


@dataclass(frozen=True)
class Tuning:
    """What a search found and what it tried; ``trials[0]`` is the unpruned model, ``best`` one of the others."""

    agree: float
    best: Trial
    trials: list[Trial]
    title: str

    def table(self) -> Table:
        """A row for each trial that ran, in their order; notes say which could not."""
        ran = [trial for trial in self.trials if trial.error is None]
        names = [name(trial.pruning) for trial in ran]
        table = plain_table(self.title, names, "agreed", "of", "first\ntoken ms", "verdict")
        for label, trial in zip(names, ran, strict=True):
            verdict = "reaches it" if trial.passed else "too many differ"
            time = f"{1e3 * trial.first_token:.1f}"
            verdict = "reference" if trial is self.trials[0] else verdict
            label = "unpruned" if trial is self.trials[0] else label
            table.add_row(escape(label), str(trial.agreed), str(trial.asked), time, verdict)
        failed = {trial.pruning.label: trial for trial in self.trials if trial.error is not None}
        notes = [f"{label} could not run at every budget: {trial.error}" for label, trial in failed.items()]
        table.caption = escape("\n".join(notes)) or None
        return table

    def sentence(self) -> str:
        """The result with its sample size and what that size is worth."""
        low, high = interval(self.best.agreed, self.best.asked)
        rate = self.best.agreed / self.best.asked
        return (
            f"{name(self.best.pruning)} agrees with the unpruned model on {self.best.agreed} of {self.best.asked} "
            f"answers ({100 * rate:.1f} %; 95 % interval {100 * low:.1f} to {100 * high:.1f} %); "
            f"first token after {1e3 * self.best.first_token:.1f} ms instead of {1e3 * self.trials[0].first_token:.1f}."
        )


def tune(
    engine: Engine,
    data: DataSet,
    methods: Sequence[str],
    agree: float,
    generation: Generation,
    budgets: Sequence[Keep | str] = GRID,
    console: Console | None = None,
) -> Tuning:
    """Find the smallest budget at which a method's answers agree with the unpruned model's at the wanted rate.

    Agreement need not grow with the budget, so nothing is skipped: budgets are tried from small to large, all methods
    at each, and a trial ends as soon as too many answers differ for it to reach the rate, which makes small budgets
    cheap. The first budget that a method reaches ends the search; of several methods that reach it, the one that
    agrees most wins, then the fastest.

    Parameters
    ----------
    methods : with options if wanted, as :meth:`Pruning.from_label` takes them.
    agree : share of the answers that have to be the same text, in (0, 1].
    budgets : values of ``keep`` to try.

    Raises
    ------
    BudgetError
        If no method reaches the rate at any of the budgets.
    InvalidInput
        If ``agree`` is out of range, answers are drawn without a seed, or nothing could be asked.
    """
    if not 0 < agree <= 1:
        raise InvalidInput(f"agree={agree} is not allowed: give a share above 0 and up to 1, such as 0.99.")
    if generation.temperature > 0 and generation.seed is None:
        raise InvalidInput("Drawn answers differ by chance alone; tune with temperature 0, or give a seed.")
    grid = sorted({Pruning(keep=keep).keep for keep in budgets}, key=lambda keep: (isinstance(keep, int), keep))
    prunings = [[Pruning.from_label(method, str(keep)) for method in methods] for keep in grid]
    with progress_bar("answers", console) as progress:
        search = _Search(engine, data, agree, generation, progress)
        total = len(data) * (1 + sum(map(len, prunings)))
        task = progress.add_task("", total=total)
        trials = [search.ask_unpruned(task)]
        for at_budget in prunings:
            new = [search.try_out(pruning, task) for pruning in at_budget]
            trials += new
            passed = [trial for trial in new if trial.passed]
            if passed:
                break
        progress.update(task, total=total, completed=total)
    report_skipped(data, console)
    if not passed:
        raise BudgetError(_failure(trials, agree))
    best = max(passed, key=lambda trial: (trial.agreed, -trial.first_token))
    title = f"Agreement of {100 * agree:g} % on {data.folder} ({engine.spec.model} on {engine.device})"
    return Tuning(agree, best, trials, title)


class _Search:
    """The unpruned model's answers, and prunings measured against them."""

    def __init__(self, engine: Engine, data: DataSet, agree: float, generation: Generation, progress: Progress) -> None:
        self.engine = engine
        self.data = data
        self.agree = agree
        self.generation = generation
        self.progress = progress
        self.answers: dict[tuple[str, str], str] = {}

    def ask_unpruned(self, task: TaskID) -> Trial:
        times = []
        for question in self.data.questions():
            try:
                answer = cold_answer(self.engine, question.messages, UNPRUNED, self.generation)
            except TopsError as error:
                self.data.skipped[question.picture] = str(error)
                continue
            self.answers[question.picture, question.prompt] = answer.text
            times.append(answer.timings.first_token)
            self.progress.advance(task)
        if not times:
            reasons = "; ".join(f"{picture}: {reason}" for picture, reason in self.data.skipped.items())
            raise InvalidInput(f"None of the pictures in {self.data.folder} could be asked about ({reasons}).")
        return Trial(UNPRUNED, len(times), len(times), statistics.median(times), passed=True)

    def try_out(self, pruning: Pruning, task: TaskID) -> Trial:
        begun = self.progress.tasks[0].completed
        allowed = int((1 - self.agree) * len(self.answers) + 1e-9)
        times: list[float] = []
        differing = 0
        error = None
        for question in self.data.questions():
            expected = self.answers.get((question.picture, question.prompt))
            if expected is None:
                continue
            try:
                answer = cold_answer(self.engine, question.messages, pruning, self.generation)
            except TopsError as problem:
                error = str(problem)
                break
            times.append(answer.timings.first_token)
            differing += not same_text(answer.text, expected)
            self.progress.advance(task)
            if differing > allowed:
                break
        self.progress.update(task, completed=begun + len(self.data))
        median = statistics.median(times) if times else 0.0
        passed = error is None and differing <= allowed
        return Trial(pruning, len(times), len(times) - differing, median, passed, error)


def _failure(trials: Sequence[Trial], agree: float) -> str:
    ran = [trial for trial in trials[1:] if trial.error is None]
    if not ran:
        return f"No method could run: {trials[-1].error}"
    total = trials[0].asked
    nearest = max(ran, key=lambda trial: (trial.asked, trial.agreed))
    return (
        f"No method reaches an agreement of {100 * agree:g} % on {total} questions with the budgets tried; "
        f"the nearest was {name(nearest.pruning)}, of whose first {nearest.asked} answers {nearest.agreed} agree. "
        "Try larger budgets, other methods, or a lower agreement."
    )

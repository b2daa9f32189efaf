"""Find the smallest budget whose answers agree with the unpruned model's on the user's own data."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tops_engine.budget import Keep, budgets_text
from tops_engine.comparison.cascade_thresholds import Attempt, smallest_threshold
from tops_engine.comparison.one_picture import cold_answer
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput, TopsError
from tops_engine.evaluation.data_set import DataSet
from tops_engine.evaluation.fidelity import same_text
from tops_engine.evaluation.intervals import Interval, share_interval
from tops_engine.evaluation.prunings import UNPRUNED, pruning_name
from tops_engine.evaluation.tables import Table
from tops_engine.progress import Progress, no_progress
from tops_engine.settings import Generation, Pruning

#: The budgets that are tried, from small to large.
GRID: tuple[Keep, ...] = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Trial:
    """One pruning asked the questions until it can no longer reach the wanted agreement.

    Attributes
    ----------
    asked, agreed : the number of questions, and of those with the same answer as the unpruned model.
    first_token : median seconds to the first token.
    kept : mean share of the visual tokens that was read, of all budgets of a cascade together.
    interval : the share of agreeing answers in percent with its 95 % interval; questions about one picture count as
        fewer than they are.
    passed : whether all questions were asked and enough answers agreed.
    error : why the pruning could not run.
    """

    pruning: Pruning
    asked: int
    agreed: int
    first_token: float
    passed: bool
    kept: float = 1.0
    interval: Interval | None = None
    error: str | None = None


@dataclass(frozen=True)
class Tuning:
    """The result of a search: ``trials[0]`` is the unpruned model, ``best`` one of the others."""

    agree: float
    best: Trial
    trials: list[Trial]
    title: str

    def table(self) -> Table:
        """Make a table with a row for each trial that ran, in order; notes name the prunings that could not run."""
        table = Table.of_numbers(self.title, "agreed", "of", "mean\nkeep", "first\ntoken ms", "verdict")
        for trial in self.trials:
            if trial.error is not None:
                continue
            is_reference = trial is self.trials[0]
            verdict = "reaches it" if trial.passed else "too many differ"
            table.add_row(
                "unpruned" if is_reference else pruning_name(trial.pruning),
                str(trial.agreed),
                str(trial.asked),
                f"{trial.kept:.3f}",
                f"{1e3 * trial.first_token:.1f}",
                "reference" if is_reference else verdict,
            )
        failed = {trial.pruning.label: trial for trial in self.trials if trial.error is not None}
        table.notes = [f"{label} could not run at every budget: {trial.error}" for label, trial in failed.items()]
        return table

    def sentence(self) -> str:
        """Return the result as a sentence, with the sample size and a confidence interval."""
        share = self.best.interval
        sure = "" if share is None else f" ({share.value:.1f} %; 95 % interval {share.low:.1f} to {share.high:.1f} %)"
        return (
            f"{pruning_name(self.best.pruning)} agrees with the unpruned model on {self.best.agreed} of "
            f"{self.best.asked} answers{sure}, with {100 * self.best.kept:.1f} % of the visual tokens on average; "
            f"first token after {1e3 * self.best.first_token:.1f} ms instead of {1e3 * self.trials[0].first_token:.1f}."
        )


def tune(
    engine: Engine,
    data: DataSet,
    methods: Sequence[str],
    agree: float,
    generation: Generation,
    budgets: Sequence[Keep | tuple[Keep, ...] | str] = GRID,
    progress: Progress = no_progress,
) -> Tuning:
    """Find the smallest budget at which a method's answers agree with the unpruned model's at the wanted rate.

    Agreement does not always grow with the budget, so every budget is tried, from small to large, with all methods. A
    trial ends as soon as too many answers differ for it to reach the rate, which makes small budgets cheap. The first
    budget that a method reaches ends the search; of several methods that reach it, the one with the highest agreement
    wins, then the fastest.

    Of a cascade (``0.111+0.5``) without ``confident``, the smallest value is found at which enough answers agree: every
    question is answered with each of the budgets, and then with the cascade that was found. Cascades come last.

    Parameters
    ----------
    methods : with options if wanted, as :meth:`Pruning.from_label` takes them.
    agree : share of the answers that must be the same text, in (0, 1].
    budgets : values of ``keep`` to try.
    progress : receives the number of answers.

    Raises
    ------
    BudgetError
        If no method reaches the rate at any of the budgets.
    InvalidInput
        If ``agree`` is out of range, answers are drawn without a seed, or no question could be asked.
    """
    if not 0 < agree <= 1:
        raise InvalidInput(f"agree={agree} is not allowed: give a share above 0 and up to 1, such as 0.99.")
    if generation.temperature > 0 and generation.seed is None:
        raise InvalidInput(
            "Answers drawn at a temperature above 0 differ by chance; tune with temperature 0, or give a seed."
        )
    grid = sorted({Pruning(keep=keep).keep for keep in budgets}, key=_order)
    prunings = [[Pruning.from_label(method, budgets_text(keep)) for method in methods] for keep in grid]
    total = len(data) * (1 + sum(_num_passes(pruning) for at_budget in prunings for pruning in at_budget))
    search = _Search(engine, data, agree, generation, progress, total)
    trials = [search.ask_unpruned()]
    for at_budget in prunings:
        new = [search.try_out(pruning) for pruning in at_budget]
        trials += new
        passed = [trial for trial in new if trial.passed]
        if passed:
            break
    progress(total, total)
    if not passed:
        raise BudgetError(_failure(trials, agree))
    best = max(passed, key=lambda trial: (trial.agreed, -trial.first_token))
    title = f"Agreement of {100 * agree:g} % on {data.folder} ({engine.spec.model} on {engine.device})"
    return Tuning(agree, best, trials, title)


class _Search:
    """The unpruned model's answers, and the trials that are compared with them."""

    def __init__(
        self, engine: Engine, data: DataSet, agree: float, generation: Generation, progress: Progress, total: int
    ) -> None:
        self.engine = engine
        self.data = data
        self.agree = agree
        self.generation = generation
        self.progress = progress
        self.total = total
        self.done = 0
        self.answers: dict[tuple[str, str], str] = {}
        self._move_to(0)

    def ask_unpruned(self) -> Trial:
        times = []
        for question in self.data.questions():
            try:
                answer = cold_answer(self.engine, question.messages, UNPRUNED, self.generation)
            except TopsError as error:
                self.data.skipped[question.picture] = str(error)
                continue
            self.answers[question.picture, question.prompt] = answer.text
            times.append(answer.timings.first_token)
            self._move_to(self.done + 1)
        if not times:
            raise self.data.nothing_asked()
        return Trial(UNPRUNED, len(times), len(times), statistics.median(times), passed=True)

    def try_out(self, pruning: Pruning) -> Trial:
        """Ask with a pruning, of a cascade with the threshold that fits the answers."""
        end = self.done + (_num_passes(pruning) - 1) * len(self.data)
        if _needs_threshold(pruning):
            try:
                threshold = smallest_threshold(self._attempts(pruning), self.agree)
            except TopsError as problem:
                self._move_to(end + len(self.data))
                return Trial(pruning, 0, 0, 0.0, passed=False, error=str(problem))
            if threshold is not None:
                pruning = pruning.model_copy(update={"confident": threshold})
        self._move_to(end)
        return self._ask(pruning)

    def _attempts(self, pruning: Pruning) -> list[list[Attempt]]:
        """Answer every question with each budget of a cascade."""
        *earlier, last = pruning.steps
        # A threshold that every answer reaches gives the answer of the first budget, and how sure the model was.
        alone = [
            pruning.model_copy(update={"keep": (step.budget, last.budget), "confident": 1e-30}) for step in earlier
        ]
        attempts = []
        for question in self.data.questions():
            expected = self.answers.get((question.picture, question.prompt))
            if expected is None:
                continue
            of_question = []
            for one in [*alone, last]:
                answer = cold_answer(self.engine, question.messages, one, self.generation)
                cascade = answer.usage.cascade
                sure = 1.0 if cascade is None else cascade.steps[0].confidence or 0.0
                of_question.append(Attempt(sure, same_text(answer.text, expected)))
                self._move_to(self.done + 1)
            attempts.append(of_question)
        return attempts

    def _ask(self, pruning: Pruning) -> Trial:
        end = self.done + len(self.data)
        allowed = int((1 - self.agree) * len(self.answers) + 1e-9)
        times: list[float] = []
        agreed: list[bool] = []
        kept: list[float] = []
        pictures: list[str] = []
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
            agreed.append(same_text(answer.text, expected))
            kept.append(answer.usage.kept_fraction)
            pictures.append(question.picture)
            self._move_to(self.done + 1)
            if agreed.count(False) > allowed:
                break
        self._move_to(end)
        median = statistics.median(times) if times else 0.0
        passed = error is None and agreed.count(False) <= allowed
        interval = share_interval(agreed, pictures) if agreed else None
        mean = statistics.fmean(kept) if kept else 0.0
        return Trial(pruning, len(agreed), sum(agreed), median, passed, mean, interval, error)

    def _move_to(self, done: int) -> None:
        self.done = done
        self.progress(done, self.total)


def _order(keep: Keep | tuple[Keep, ...]) -> tuple[bool, bool, tuple[Keep, ...]]:
    """Return what budgets are sorted by: fractions, numbers of tokens, then cascades; each from small to large."""
    keeps = keep if isinstance(keep, tuple) else (keep,)
    return len(keeps) > 1, isinstance(keeps[0], int), keeps


def _needs_threshold(pruning: Pruning) -> bool:
    return isinstance(pruning.keep, tuple) and pruning.confident is None


def _num_passes(pruning: Pruning) -> int:
    """Return how often each question is answered for a trial."""
    return 1 + len(pruning.steps) if _needs_threshold(pruning) else 1


def _failure(trials: Sequence[Trial], agree: float) -> str:
    ran = [trial for trial in trials[1:] if trial.error is None]
    if not ran:
        return f"No method could run: {trials[-1].error}"
    total = trials[0].asked
    nearest = max(ran, key=lambda trial: (trial.asked, trial.agreed))
    return (
        f"No method reaches an agreement of {100 * agree:g} % on {total} questions with the budgets tried; the closest "
        f"was {pruning_name(nearest.pruning)}: {nearest.agreed} of its first {nearest.asked} answers agree. "
        "Try larger budgets, other methods, or a lower agreement."
    )

"""Compare prunings on a folder of pictures, without labels: the unpruned model is the reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tops_engine.answers.report import ScoredAnswer
from tops_engine.comparison.records import FolderResult, Record, agreement_halves, difference, summarise
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, TopsError
from tops_engine.evaluation.data_set import DataSet, Question
from tops_engine.evaluation.fidelity import fidelity
from tops_engine.evaluation.prunings import (
    UNPRUNED,
    check_measured,
    is_compared,
    pruning_name,
    settings_key,
    without_unpruned,
)
from tops_engine.journal import Journal
from tops_engine.progress import Progress, no_progress
from tops_engine.settings import Generation, Pruning
from tops_engine.version import __version__


def compare_folder(
    engine: Engine,
    data: DataSet,
    prunings: Sequence[Pruning],
    generation: Generation,
    path: Path | None = None,
    progress: Progress = no_progress,
    against: Sequence[str] = (),
) -> FolderResult:
    """Ask every question with the unpruned model and with every pruning, one answer at a time.

    If ``resize`` is among them, the result also has all of them on the questions that it answers as the unpruned model
    does at the same budget, and on the others.

    Another pruning goes first at each question, so that a change of the machine's speed affects all of them. Before
    the first question each pruning is asked it once as a warm-up.

    Parameters
    ----------
    path : JSONL file that the results are added to; questions it has results for are not asked again.
    progress : receives the number of questions.
    against : labels of measured methods; the result holds the difference of every other pruning at the same budget.

    Raises
    ------
    InvalidInput
        If ``path`` belongs to another run, answers are drawn without a seed, or no question could be asked.
    """
    asked = [UNPRUNED, *without_unpruned(prunings)]
    check_measured(against, asked)
    run = FolderRun(engine, data, generation, path)
    found: list[Record] = []
    progress(0, len(data))
    for question in data.questions():
        found += run.ask(question, asked)
        progress(len(found) // len(asked), len(data))
    progress(len(data), len(data))
    if not found:
        raise data.nothing_asked()
    title = f"{len(found) // len(asked)} questions about {data.folder} ({engine.spec.model} on {engine.device})"
    pairs = [(one, other) for one in asked for other in asked if is_compared(one, other, against)]
    differences = [found_one for one, other in pairs if (found_one := difference(one, other, found)) is not None]
    summaries = [summarise(pruning, found) for pruning in asked]
    return FolderResult(title, summaries, dict(data.skipped), differences, agreement_halves(asked, found))


class FolderRun:
    """Questions asked with several prunings, and the journal of their answers.

    Parameters
    ----------
    path : JSONL file that the results are added to; questions it has results for are not asked again.

    Raises
    ------
    InvalidInput
        If ``path`` belongs to another run, or answers are drawn without a seed.
    """

    def __init__(self, engine: Engine, data: DataSet, generation: Generation, path: Path | None) -> None:
        if generation.temperature > 0 and generation.seed is None:
            raise InvalidInput(
                "Answers drawn at a temperature above 0 differ by chance; compare with temperature 0, or give a seed."
            )
        self.engine = engine
        self.data = data
        self.generation = generation
        self._journal = Journal(path, _header(engine, data, generation))
        self._records = {record.key: record for record in map(Record.model_validate, self._journal.records())}
        self._num_asked = 0
        self._is_warm = False

    def ask(self, question: Question, prunings: Sequence[Pruning]) -> list[Record]:
        """Return a record for each pruning; none if the unpruned model cannot be asked, and the picture is skipped.

        Another pruning goes first at each question. Before the first question each pruning is asked it as a warm-up.
        """
        missing = [pruning for pruning in prunings if _key(question, pruning) not in self._records]
        if missing:
            turn = self._num_asked % len(missing)
            self._num_asked += 1
            try:
                new = self._ask_all(question, missing[turn:] + missing[:turn])
            except TopsError as error:
                self.data.skipped[question.picture] = str(error)
                return []
            self._journal.append([record.model_dump(mode="json") for record in new])
            self._records |= {record.key: record for record in new}
        return [self._records[_key(question, pruning)] for pruning in prunings]

    def _ask_all(self, question: Question, prunings: Sequence[Pruning]) -> list[Record]:
        unpruned = Reference(self.engine, question, self.generation)
        if not self._is_warm:
            _ = [_ask(unpruned, pruning) for pruning in prunings]
            # The warm-up is no part of a stream whose mean is kept.
            self.engine.restart_streams()
        self._is_warm = True
        return [_ask(unpruned, pruning) for pruning in prunings]


class Reference:
    """The unpruned model's answer to a question; every pruning is compared with it."""

    def __init__(self, engine: Engine, question: Question, generation: Generation) -> None:
        self.engine = engine
        self.question = question
        self.generation = generation
        (self.scored,) = engine.scored_batch([question.messages], UNPRUNED, generation)

    def ask(self, pruning: Pruning) -> ScoredAnswer:
        """Answer the same question with a pruning, and score the unpruned answer's tokens with it."""
        tokens = [self.scored.answer.token_ids]
        (scored,) = self.engine.scored_batch([self.question.messages], pruning, self.generation, tokens)
        return scored


def _ask(reference: Reference, pruning: Pruning) -> Record:
    question = reference.question
    about: dict[str, Any] = {"picture": question.picture, "digest": question.digest, "prompt": question.prompt}
    about |= {"pruning": pruning.resolved(), "name": pruning_name(pruning)}
    if pruning == UNPRUNED:
        # The reference's own run may be the first on this picture; this run is timed like those of the prunings.
        scored = reference.ask(UNPRUNED)
    else:
        try:
            scored = reference.ask(pruning)
        except TopsError as error:
            return Record(**about, error=str(error))
    answer = scored.answer
    return Record(
        **about,
        answer=answer.text,
        fidelity=fidelity(reference.scored, scored),
        layer_average=answer.usage.layer_average,
        first_token=answer.timings.first_token,
        selection=answer.timings.selection,
        total=answer.timings.total,
        flops=answer.flops.total,
    )


def _key(question: Question, pruning: Pruning) -> tuple[str, ...]:
    return (question.picture, question.digest, question.prompt, settings_key(pruning.resolved()))


def _header(engine: Engine, data: DataSet, generation: Generation) -> dict[str, Any]:
    return {
        "format": "tops compare 1",
        "version": __version__,
        "model": engine.spec.model_dump(mode="json"),
        "device": str(engine.device),
        "generation": generation.model_dump(mode="json"),
        "folder": data.folder.resolve().name,
        "prompts": data.prompts,
    }

"""Prunings on a folder of pictures and a list of questions, without labels: the unpruned model is the reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tops_engine import __version__
from tops_engine.answers.report import ScoredAnswer
from tops_engine.comparison.fidelity import UNPRUNED, fidelity, name, without_unpruned
from tops_engine.comparison.pictures import DataSet, Question, progress_bar, report_skipped
from tops_engine.comparison.records import DataSetResult, Record, summarise
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, TopsError
from tops_engine.journal import Journal
from tops_engine.settings import Generation, Pruning


def compare_data_set(
    engine: Engine,
    data: DataSet,
    prunings: Sequence[Pruning],
    generation: Generation,
    path: Path | None = None,
    console: Console | None = None,
) -> DataSetResult:
    """Ask every question with the unpruned model and every pruning, one answer at a time.

    The prunings take turns in going first, so that a drift of the machine's speed hits all alike. Each is asked the
    first question once more before, as a warm-up.

    Parameters
    ----------
    path : JSONL file the results are added to; what it holds already is not asked again.
    console : shows the progress, if given.

    Raises
    ------
    InvalidInput
        If ``path`` belongs to another run, or no question at all could be asked.
    """
    if generation.temperature > 0 and generation.seed is None:
        raise InvalidInput("Drawn answers differ by chance alone; compare with temperature 0, or give a seed.")
    asked = [UNPRUNED, *without_unpruned(prunings)]
    journal = Journal(path, _header(engine, data, generation))
    records = {record.key: record for record in map(Record.model_validate, journal.records())}
    found: list[Record] = []
    is_warm = False
    with progress_bar("questions", console) as progress:
        task = progress.add_task("", total=len(data))
        for number, question in enumerate(data.questions()):
            missing = [pruning for pruning in asked if _key(question, pruning) not in records]
            if missing:
                turn = number % len(missing)
                try:
                    unpruned = Reference(engine, question, generation)
                    if not is_warm:
                        _ = [_ask(unpruned, pruning) for pruning in missing]
                    is_warm = True
                    new = [_ask(unpruned, pruning) for pruning in missing[turn:] + missing[:turn]]
                except TopsError as error:
                    data.skipped[question.picture] = str(error)
                    continue
                journal.append([record.model_dump(mode="json") for record in new])
                records |= {record.key: record for record in new}
            found += [records[_key(question, pruning)] for pruning in asked]
            progress.advance(task)
        progress.update(task, completed=len(data))
    report_skipped(data, console)
    if not found:
        raise InvalidInput(f"None of the pictures in {data.folder} could be asked about; see the reasons above.")
    title = f"{len(found) // len(asked)} questions about {data.folder} ({engine.spec.model} on {engine.device})"
    return DataSetResult(title, [summarise(pruning, found) for pruning in asked], dict(data.skipped))


class Reference:
    """The unpruned model's answer to a question, which every pruning is measured against."""

    def __init__(self, engine: Engine, question: Question, generation: Generation) -> None:
        self.engine = engine
        self.question = question
        self.generation = generation
        (self.scored,) = engine.scored_batch([question.messages], UNPRUNED, generation)

    def ask(self, pruning: Pruning) -> ScoredAnswer:
        """The pruned model's answer to the same question."""
        tokens = [self.scored.answer.token_ids]
        (scored,) = self.engine.scored_batch([self.question.messages], pruning, self.generation, tokens)
        return scored


def _ask(reference: Reference, pruning: Pruning) -> Record:
    question = reference.question
    about: dict[str, Any] = {"picture": question.picture, "digest": question.digest, "prompt": question.prompt}
    about |= {"pruning": pruning.resolved(), "name": name(pruning)}
    if pruning == UNPRUNED:
        # The reference's own run may be the first on this picture; this one is timed like the others.
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
    return (question.picture, question.digest, question.prompt, repr(sorted(pruning.resolved().items())))


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

"""Compare prunings on one question."""

import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message
from tops_engine.engine import Engine
from tops_engine.errors import TopsError
from tops_engine.evaluation.fidelity import Fidelity, fidelity
from tops_engine.evaluation.prunings import UNPRUNED, pruning_name, without_unpruned
from tops_engine.evaluation.tables import Column, Notes, Table
from tops_engine.settings import Generation, Pruning

PARTS = ("prepare", "vision", "selection", "prefill", "decode")
TIMED = ("first_token", "total", *PARTS)


@dataclass(frozen=True)
class Row:
    """The result of one pruning.

    Attributes
    ----------
    seconds : the median of each part of the run (see :class:`tops_engine.answers.report.Timings`).
    """

    pruning: Pruning
    answer: Answer
    seconds: dict[str, float]
    fidelity: Fidelity


@dataclass(frozen=True)
class FailedRow:
    """A pruning that could not run, for example because its method cannot meet the budget."""

    pruning: Pruning
    error: str


def compare_prunings(
    engine: Engine,
    messages: Sequence[Message],
    prunings: Sequence[Pruning],
    generation: Generation,
    repeats: int = 3,
    cancel: threading.Event | None = None,
) -> list[Row | FailedRow]:
    """Ask the unpruned model and each pruning the same question; measure fidelity once and times ``repeats`` times.

    The prunings alternate in the timed rounds, so that a change of the machine's speed affects all of them. The
    fidelity run before them is their warm-up.

    Parameters
    ----------
    repeats : timed rounds; the median is reported.
    cancel : stops the timed rounds when it is set.

    Returns
    -------
    The unpruned model's row, then one row for each pruning.

    Raises
    ------
    TopsError
        If the unpruned model cannot answer.
    """
    (unpruned,) = engine.scored_batch([messages], UNPRUNED, generation)
    references = [unpruned.answer.token_ids]
    scored = {UNPRUNED: unpruned}
    errors: dict[Pruning, str] = {}
    for pruning in without_unpruned(prunings):
        try:
            (scored[pruning],) = engine.scored_batch([messages], pruning, generation, references)
        except TopsError as error:
            errors[pruning] = str(error)
    rounds = [
        {pruning: cold_answer(engine, messages, pruning, generation, cancel) for pruning in scored}
        for _ in range(repeats)
    ]
    rows: list[Row | FailedRow] = []
    for pruning in (UNPRUNED, *without_unpruned(prunings)):
        if pruning in errors:
            rows.append(FailedRow(pruning, errors[pruning]))
            continue
        timings = [answers[pruning].timings for answers in rounds]
        seconds = {part: statistics.median(getattr(timing, part) for timing in timings) for part in TIMED}
        rows.append(Row(pruning, rounds[0][pruning], seconds, fidelity(unpruned, scored[pruning])))
    return rows


def cold_answer(
    engine: Engine,
    messages: Sequence[Message],
    pruning: Pruning,
    generation: Generation,
    cancel: threading.Event | None = None,
) -> Answer:
    """Answer without the states that the engine keeps of earlier prompts, as at a picture's first question."""
    engine.forget()
    return engine.chat(messages, pruning, generation, cancel)


def comparison_table(rows: Sequence[Row | FailedRow], title: str) -> Table:
    """Make a table with times, FLOPs, tokens, fidelity and answer of each pruning; notes say why one could not run."""
    headings = ("first\ntoken ms", "in all\nms", "GFLOPs", "tokens\na layer", "loss +", "KL", "same")
    table, notes = Table.of_numbers(title, *headings), Notes()
    table.columns.append(Column("answer", wraps=True, align="left"))
    for row in rows:
        if isinstance(row, FailedRow):
            table.add_row(pruning_name(row.pruning), *[""] * len(headings), notes.mark(row.error))
            continue
        table.add_row(
            _row_name(row),
            f"{1e3 * row.seconds['first_token']:.1f}",
            f"{1e3 * row.seconds['total']:.1f}",
            f"{row.answer.flops.total / 1e9:.3g}",
            f"{row.answer.usage.layer_average:.1f}",
            f"{row.fidelity.loss_increase:.3f}",
            f"{row.fidelity.first_token_kl:.3f}",
            "yes" if row.fidelity.agrees else "no",
            row.answer.text.strip(),
        )
    table.notes = notes.lines()
    return table


def parts_table(rows: Sequence[Row | FailedRow]) -> Table:
    """Make a table of the milliseconds of each part, the size of the KV cache, and the visual tokens of each stage."""
    table = Table.of_numbers("Where the time goes, ms", *PARTS, "KV\nKiB")
    table.columns.append(Column("visual tokens", wraps=True))
    for row in rows:
        if isinstance(row, Row):
            stages = " → ".join(str(sum(stage.visual_tokens)) for stage in row.answer.usage.stages)
            cells = [f"{1e3 * row.seconds[part]:.1f}" for part in PARTS]
            table.add_row(_row_name(row), *cells, f"{row.answer.kv_cache_bytes / 1024:.0f}", stages)
    return table


def _row_name(row: Row) -> str:
    return "unpruned" if row.pruning == UNPRUNED else pruning_name(row.pruning)

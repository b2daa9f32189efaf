"""One question with several prunings, side by side."""

import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from tops_engine.answers.report import Answer
from tops_engine.comparison.fidelity import UNPRUNED, Fidelity, fidelity, name, without_unpruned
from tops_engine.comparison.tables import Notes, plain_table
from tops_engine.conversation.messages import Message
from tops_engine.engine import Engine
from tops_engine.errors import TopsError
from tops_engine.settings import Generation, Pruning

PARTS = ("prepare", "vision", "selection", "prefill", "decode")
TIMED = ("first_token", "total", *PARTS)


@dataclass(frozen=True)
class Row:
    """One pruning's answer, its fidelity, and its median seconds by part (see
    :class:`tops_engine.answers.report.Timings`)."""

    pruning: Pruning
    answer: Answer
    seconds: dict[str, float]
    fidelity: Fidelity


@dataclass(frozen=True)
class FailedRow:
    """A pruning that could not run, such as one whose method cannot meet the budget, and why."""

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
    """Ask the unpruned model and each pruning once for the answer's fidelity, then ``repeats`` times for its times.

    The timed rounds, which ``cancel`` can stop, take turns, so that a drift of the machine's speed hits all alike; the
    first asking is their warm-up.

    Returns
    -------
    The unpruned model's row, then one for each pruning.

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
    """As at the first question about the picture; the engine would go on from the last one."""
    engine.forget()
    return engine.chat(messages, pruning, generation, cancel)


def comparison_table(rows: Sequence[Row | FailedRow], title: str) -> Table:
    """A row for each pruning: latency, FLOPs, tokens, fidelity, answer; a note below says why one could not run."""
    names = [name(row.pruning) for row in rows]
    table = plain_table(
        title, names, "first\ntoken ms", "in all\nms", "GFLOPs", "tokens\na layer", "loss +", "KL", "same"
    )
    table.add_column("answer", overflow="fold", min_width=6)
    notes = Notes()
    for row in rows:
        if isinstance(row, FailedRow):
            table.add_row(escape(name(row.pruning)), *[""] * 7, escape(notes.mark(row.error)))
            continue
        table.add_row(
            _name(row),
            f"{1e3 * row.seconds['first_token']:.1f}",
            f"{1e3 * row.seconds['total']:.1f}",
            f"{row.answer.flops.total / 1e9:.3g}",
            f"{row.answer.usage.layer_average:.1f}",
            f"{row.fidelity.loss_increase:.3f}",
            f"{row.fidelity.first_token_kl:.3f}",
            "yes" if row.fidelity.agrees else "no",
            escape(row.answer.text.strip()),
        )
    table.caption = notes.caption()
    return table


def parts_table(rows: Sequence[Row | FailedRow]) -> Table:
    """Where the time goes, in milliseconds, and which stages and memory stand behind it."""
    names = [name(row.pruning) for row in rows]
    table = plain_table("Where the time goes, ms", names, *PARTS, "KV\nKiB")
    table.add_column("visual tokens", justify="right")
    for row in rows:
        if isinstance(row, Row):
            stages = " → ".join(str(sum(stage.visual_tokens)) for stage in row.answer.usage.stages)
            cells = [f"{1e3 * row.seconds[part]:.1f}" for part in PARTS]
            table.add_row(_name(row), *cells, f"{row.answer.kv_cache_bytes / 1024:.0f}", stages)
    return table


def _name(row: Row) -> str:
    return "unpruned" if row.pruning == UNPRUNED else escape(name(row.pruning))

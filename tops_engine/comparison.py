"""The same question with several prunings, side by side."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from rich.markup import escape
from rich.table import Table

from tops_engine.engine import Engine
from tops_engine.messages import Message
from tops_engine.report import Answer
from tops_engine.settings import Generation, Pruning
from tops_engine.token_map import PAPER

TIMED = ("vision", "selection", "prefill", "decode", "total")


@dataclass(frozen=True)
class Row:
    """One pruning's answer, and its median seconds by part (see :class:`tops_engine.report.Timings`)."""

    pruning: Pruning
    answer: Answer
    seconds: dict[str, float]


def compare_prunings(
    engine: Engine,
    messages: Sequence[Message],
    prunings: Sequence[Pruning],
    generation: Generation,
    repeats: int = 3,
) -> list[Row]:
    """Ask once to warm up, then ``repeats`` times with each pruning in turn, so that drift hits all alike."""
    for pruning in prunings:
        engine.chat(messages, pruning, generation)
    rounds = [[engine.chat(messages, pruning, generation) for pruning in prunings] for _ in range(repeats)]
    rows = []
    for pruning, answers in zip(prunings, zip(*rounds, strict=True), strict=True):
        seconds = {part: statistics.median(getattr(answer.timings, part) for answer in answers) for part in TIMED}
        rows.append(Row(pruning, answers[0], seconds))
    return rows


def comparison_table(rows: Sequence[Row], title: str) -> Table:
    """A column for each pruning: answer, tokens, milliseconds and FLOPs."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column()
    for row in rows:
        table.add_column(f"{row.pruning.label} {row.pruning.keep}", justify="right", overflow="fold")
    usages = [row.answer.usage for row in rows]
    stages = [" → ".join(str(sum(stage.visual_tokens)) for stage in usage.stages) for usage in usages]
    table.add_row("answer", *(escape(row.answer.text.strip()) for row in rows), style="bold", end_section=True)
    table.add_row("visual tokens", *stages)
    table.add_row("layer-average", *(f"{usage.layer_average:.1f}" for usage in usages), end_section=True)
    for part in TIMED:
        table.add_row(f"{part}, ms", *(f"{1e3 * row.seconds[part]:.1f}" for row in rows), end_section=part == TIMED[-1])
    table.add_row("GFLOPs", *(f"{row.answer.flops.total / 1e9:.3g}" for row in rows))
    table.add_row("KV cache, KiB", *(f"{row.answer.kv_cache_bytes / 1024:.0f}" for row in rows))
    return table


def stack_maps(answers: Sequence[Answer]) -> Image.Image:
    """The token maps of several answers below each other; where nothing was dropped only if all are so."""
    pruned = [answer for answer in answers if answer.usage.kept_fraction < 1]
    maps = [answer.token_map.draw() for answer in pruned or answers[:1]]
    canvas = Image.new("RGB", (max(map_.width for map_ in maps), sum(map_.height for map_ in maps)), PAPER)
    top = 0
    for map_ in maps:
        canvas.paste(map_, (0, top))
        top += map_.height
    return canvas

"""Second call: time the first token of LLaVA-NeXT-7B and further tokens of LLaVA-1.5-7B, all sides in turns."""

from functools import partial
from typing import Any
from unittest import mock

from benchmarks.gpu.call import Bench, Part
from benchmarks.gpu.expected import line
from benchmarks.latency import answer_tokens, engine_times, measure, sides_of
from benchmarks.published_sizes import SIZES
from benchmarks.selection import measure_on
from benchmarks.shapes import question
from tops_engine.conversation.messages import Conversation
from tops_engine.families import Family
from tops_engine.generation import recorded_prefill
from tops_engine.generation.static import StepPool
from tops_engine.settings import Pruning

FIRST_TOKEN_SHAPE, DECODE_SHAPE = "llava-next-7b", "llava-1.5-7b"


def first_token(bench: Bench) -> dict[str, Any]:
    """Measure unpruned and pruned answers, with plain and recorded prefill, and transformers' generate in turns."""
    family, rounds = bench.model(FIRST_TOKEN_SHAPE), 1 if bench.rehearsal else 5
    conversation = question(SIZES[FIRST_TOKEN_SHAPE], 60)
    sides = sides_of(family, conversation, 4, (1.0, 0.222, 0.111), {"": None})
    with mock.patch.object(recorded_prefill, "RECORD_PREFILL", True):
        pool = StepPool(family.decoder, compiled=False)
    same = all(_recorded_answers(family, conversation, keep, pool) for keep in (0.222, 0.111))
    for keep in (0.222, 0.111):
        sides[f"keep {keep}, prefill recorded"] = partial(
            engine_times, family, conversation, Pruning(keep=keep), 4, pool
        )
    rows, bytes_a_second = measure(family, sides, rounds)
    times = {row["side"]: row["seconds"]["first_token"] for row in rows}
    unpruned = times["unpruned"]
    lines = [f"{side}: {1e3 * seconds:.1f} ms, {unpruned / seconds:.2f} times" for side, seconds in times.items()]
    lines.append(line("first token, 0.111", f"{unpruned / times['keep 0.111']:.2f} times"))
    recorded = f"{unpruned / times['keep 0.111, prefill recorded']:.2f} times, {'same' if same else 'OTHER'} tokens"
    lines.append(line("first token, 0.111, prefill recorded", recorded))
    lines.append(line("unpruned against generate", f"{times['transformers generate'] / unpruned:.2f} times as fast"))
    return {"results": rows, "bytes_a_second": bytes_a_second, "rounds": rounds, "same": same, "summary": lines}


def _recorded_answers(family: Family, conversation: Conversation, keep: float, pool: StepPool) -> bool:
    """Record the prefill of a prompt, and return whether the answers of recording and replay are the plain ones."""
    pruning = Pruning(keep=keep)
    plain = answer_tokens(family, conversation, pruning, 4)
    # The shape is seen, recorded and replayed.
    return all(answer_tokens(family, conversation, pruning, 4, pool) == plain for _ in range(3))


def further_tokens(bench: Bench) -> dict[str, Any]:
    """Measure further tokens: plain, recorded as a CUDA graph, and compiled and recorded."""
    family = bench.model(DECODE_SHAPE)
    pools: dict[str, StepPool | None] = {"": None}
    if bench.device == "cuda":
        pools |= {", recorded": StepPool(family.decoder, compiled=False), ", compiled": StepPool(family.decoder)}
    else:
        pools[", static"] = StepPool(family.decoder, compiled=False)
    rounds, num_new = (1, 4) if bench.rehearsal else (3, 96)
    sides = sides_of(family, question(SIZES[DECODE_SHAPE], 60), num_new, (1.0, 0.222), pools)
    rows, bytes_a_second = measure(family, sides, rounds)
    lines = []
    for row in rows:
        share = row["next_token_floor_s"] / row["seconds"]["next_token"] if row["seconds"]["next_token"] else 0.0
        measured = f"{row['side']}: {1e3 * row['seconds']['next_token']:.2f} ms, {100 * share:.0f} %"
        compiled = row["side"] == "unpruned, compiled"
        lines.append(line("further token, share of the floor", measured) if compiled else measured)
    return {"results": rows, "bytes_a_second": bytes_a_second, "rounds": rounds, "summary": lines}


def selection(bench: Bench) -> dict[str, Any]:
    """Measure the selection alone, at the sizes of LLaVA-NeXT's stages at keep 0.111, for one and eight pictures."""
    sizes = [(40, 10)] if bench.rehearsal else [(2880, 640), (640, 160)]
    width, repeats = (64, 1) if bench.rehearsal else (4096, 3)
    rows = [measure_on(bench.device, *size, images, width, repeats) for size in sizes for images in (1, 8)]
    lines = [
        f"{row['tokens']} -> {row['keep']}, {row['images']} pictures: similarity {1e3 * row['similarity_s']:.2f} ms, "
        f"in all {1e3 * row['queued_s']:.2f} ms"
        for row in rows
    ]
    return {"results": rows, "summary": lines}


PARTS = [
    Part("first token", 75, first_token),
    Part("selection", 25, selection),
    Part("further tokens", 110, further_tokens),
]

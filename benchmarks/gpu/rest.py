"""Third call: throughput, a second question, other models, out-of-memory errors, and offloading."""

from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

import torch

from benchmarks import reuse
from benchmarks.gpu.call import Bench, Part
from benchmarks.gpu.expected import line
from benchmarks.latency import answer_tokens, measure, sides_of
from benchmarks.published_sizes import SIZES
from benchmarks.shapes import question, random_picture
from benchmarks.throughput import best_of, largest_batch, pictures, seconds_for
from tops_engine.families import Family
from tops_engine.families.parts import tower_parts
from tops_engine.families.prompt import Prompt
from tops_engine.settings import Pruning

SHAPE = "llava-next-7b"
OTHER_SHAPES = ("qwen2.5-vl-7b", "internvl3-8b")
KEEPS = [1.0, 0.111]

#: Tiles that the vision tower reads at a time: all, four pictures' and one picture's.
TILES_AT_A_TIME = (None, 20, 5)

#: The number of out-of-memory errors in a row.
TIMES_OUT_OF_MEMORY = 20


def throughput(bench: Bench) -> dict[str, Any]:
    """Compare the best batch of unpruned captions with the best batch of pruned ones."""
    family = bench.model(SHAPE)
    conversations = pictures(SHAPE, 4 if bench.rehearsal else 32)
    seconds_for(family, conversations[:2], 2, 0.5, 2)  # warms up
    rows = []
    for keep in KEEPS:
        largest = largest_batch(family, conversations, keep, 8)
        for size in dict.fromkeys((largest, max(largest // 2, 1))):
            seconds = seconds_for(family, conversations, size, keep, 8)
            captions = {
                "pictures_a_second": len(conversations) / seconds.total,
                "prepared_pictures_a_second": len(conversations) / (seconds.total - seconds.prepare),
            }
            rows.append({"batch": size, "keep": keep} | captions)
    best = best_of(rows, KEEPS, "prepared_pictures_a_second")
    lines = [
        f"keep {row['keep']}, batches of {row['batch']}: {row['prepared_pictures_a_second']:.1f} captions a second, "
        f"{row['pictures_a_second']:.1f} with preparing"
        for row in best
    ]
    lines.append(line("captions a second, 0.111", f"{best[-1]['times_the_first']:.2f} times"))
    return {"results": rows, "best": best, "summary": lines}


def second_question(bench: Bench) -> dict[str, Any]:
    """Measure a second question about a picture and the first."""
    row = reuse.measure(bench.model(SHAPE), random_picture(SIZES[SHAPE]), 0.111, 1 if bench.rehearsal else 5)
    return {"results": row, "summary": [line("second question", f"{100 * row['ratio']:.0f} %")]}


def vision_in_parts(bench: Bench) -> dict[str, Any]:
    """Measure the vision tower on all tiles of 16 pictures at once, and on some at a time."""
    family = bench.model(SHAPE)
    prompts = [family.prepare(conversation) for conversation in pictures(SHAPE, 2 if bench.rehearsal else 16)]
    rows = []
    for tiles in TILES_AT_A_TIME:
        with mock.patch.object(tower_parts, "MAX_TILES", tiles):
            _encode(family, prompts)  # warms up
            seconds, peaks = zip(*(_encode(family, prompts) for _ in range(3)), strict=True)
        rows.append({"tiles": tiles, "seconds": median(seconds), "peak_bytes": max(peaks)})
    whole, *parts = rows
    lines = [f"whole: {1e3 * whole['seconds']:.1f} ms, {whole['peak_bytes'] / 1e9:.2f} GB above the weights"]
    for row in parts:
        measured = f"{1e3 * row['seconds']:.1f} ms, {row['peak_bytes'] / 1e9:.2f} GB"
        figure = f"vision in parts of {row['tiles']} tiles"
        lines.append(line(figure, measured) if row["tiles"] == 20 else f"{figure}: {measured}")
    return {"results": rows, "summary": lines}


@torch.inference_mode()
def _encode(family: Family, prompts: list[Prompt]) -> tuple[float, int]:
    """Encode the pictures of prompts; return the seconds, and the peak of memory above what was held before."""
    on_gpu, before = family.decoder.device.type == "cuda", 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    begun = perf_counter()
    encoded = family.encode(prompts)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = perf_counter() - begun
    del encoded
    return seconds, torch.cuda.max_memory_allocated() - before if on_gpu else 0


def preparing(bench: Bench) -> dict[str, Any]:
    """Measure preparing a picture, scaled by Pillow and on the device; check that the pixels are the same."""
    family, conversation = bench.model(SHAPE), question(SIZES[SHAPE], 60)
    processor = family.processor.image_processor
    milliseconds, pixels = {}, {}
    for device in dict.fromkeys(("cpu", bench.device)):
        processor.scale_on(torch.device(device))
        times = []
        for _ in range(2 if bench.rehearsal else 6):
            family.forget_pictures()
            begun = perf_counter()
            pixels[device] = family.prepare(conversation).pixels["pixel_values"].cpu()
            times.append(1e3 * (perf_counter() - begun))
        milliseconds[device] = median(times[1:])
    same = torch.equal(pixels["cpu"], pixels[bench.device])
    measured = ", ".join(f"{device} {time:.1f} ms" for device, time in milliseconds.items())
    measured += ", same pixels" if same else ", OTHER PIXELS"
    results = {"milliseconds": milliseconds, "same_pixels": same}
    return {"results": results, "summary": [line("scaling on the GPU", measured)]}


def out_of_memory(bench: Bench) -> dict[str, Any]:
    """Cause out-of-memory errors in a row; check that no memory stays allocated and the next answer does not change."""
    family, conversation = bench.model(SHAPE), question(SIZES[SHAPE], 60)
    expected = answer_tokens(family, conversation, Pruning(keep=0.111), 4)
    if bench.device != "cuda":
        return {"results": None, "summary": ["needs a GPU"]}
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    batch = pictures(SHAPE, 4)
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(free - 2**30, 0), dtype=torch.uint8, device=bench.device)  # leaves 1 GiB to the batch
    failures = 0
    for _ in range(TIMES_OUT_OF_MEMORY):
        try:
            seconds_for(family, batch, len(batch), 1.0, 2)
        except torch.OutOfMemoryError:
            failures += 1
    del held
    torch.cuda.empty_cache()
    left = torch.cuda.memory_allocated() - before
    same = answer_tokens(family, conversation, Pruning(keep=0.111), 4) == expected
    lines = [f"{failures} of {TIMES_OUT_OF_MEMORY} times out of memory, {left / 2**20:.0f} MiB left behind"]
    lines.append("the next answer is the same" if same else "the next answer is ANOTHER one")
    return {"results": {"failures": failures, "left_bytes": left, "same_answer": same}, "summary": lines}


def offload(bench: Bench) -> dict[str, Any]:
    """Move the weights to main memory and back, as ComfyUI does between nodes; check that the answer stays the same."""
    family, conversation = bench.model(SHAPE), question(SIZES[SHAPE], 60)
    expected = answer_tokens(family, conversation, Pruning(keep=0.111), 4)
    seconds: dict[str, list[float]] = {"away": [], "back": []}
    for _ in range(1 if bench.rehearsal else 2):
        for name, device in (("away", "cpu"), ("back", bench.device)):
            begun = perf_counter()
            family.to(torch.device(device))
            if bench.device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(perf_counter() - begun)
    same = answer_tokens(family, conversation, Pruning(keep=0.111), 4) == expected
    medians = {name: median(times) for name, times in seconds.items()}
    lines = [f"away in {medians['away']:.1f} s, back in {medians['back']:.1f} s"]
    lines.append("the next answer is the same" if same else "the next answer is ANOTHER one")
    return {"results": medians | {"same_answer": same}, "summary": lines}


def other_models(bench: Bench) -> dict[str, Any]:
    """Measure the first token of models with other towers."""
    results, lines = {}, []
    for shape in OTHER_SHAPES:
        bench.drop_models()
        family = bench.model(shape)
        sides = sides_of(family, question(SIZES[shape], 60), 2, KEEPS, {"": None})
        rows, _ = measure(family, sides, 1 if bench.rehearsal else 3)
        results[shape] = rows
        times = {row["side"]: row["seconds"]["first_token"] for row in rows}
        words = [f"{side} {1e3 * seconds:.1f} ms" for side, seconds in times.items()]
        lines.append(f"{shape}: {', '.join(words)}")
    return {"results": results, "summary": lines}


PARTS = [
    Part("throughput", 75, throughput),
    Part("second question", 15, second_question),
    Part("vision in parts", 10, vision_in_parts),
    Part("preparing", 5, preparing),
    Part("out of memory", 20, out_of_memory),
    Part("offload and return", 30, offload),
    Part("other models", 60, other_models),
]

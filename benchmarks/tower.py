"""Measure what is saved before and inside vision towers: equal patches, dropped patches, and preparing pictures.

    python -m benchmarks.tower --json benchmarks/results/tower.json
    python -m benchmarks.tower --towers --shapes smolvlm-256m --dtype bfloat16 --threads 2 --json tower.json
    python -m benchmarks.tower --towers --shapes qwen2.5-vl-3b --text-layers 4 --dtype bfloat16 \
        --kinds "screen recording" "moving camera" --frames 8 --rounds 2 --json tower.json

Three parts. Shares: how many patches of each kind of picture the towers of published sizes encode, and the FLOPs that
are left by formula; a run with two narrow vision layers finds them, and the weights are random. Host: milliseconds of
transformers' image processors, and of the same with this project's steps. Times: all parts of an answer with random
weights of a published shape, in turns, after one pruned answer that does not count; ``--text-layers`` keeps the first
layers of a language model that does not fit into memory, and ``--frames`` the first frames of a video, as the rows say.
The file is written after each round. Parts without shapes are left out and stay in the file. Shares and pages need
Chromium.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.cpu_shapes import SHAPES
from benchmarks.machine import machine
from benchmarks.published_sizes import SIZES, Published
from benchmarks.shapes import build, write_files
from benchmarks.tiny_sizes import narrow
from benchmarks.tower_pictures import KINDS, VIDEOS
from tops_engine.conversation.messages import Conversation, read_conversation, user_message, video_message
from tops_engine.families import FAMILIES, Family
from tops_engine.families.parts.picture_steps import with_picture_steps
from tops_engine.generation.run import Run
from tops_engine.settings import Generation, Pruning
from tops_engine.tower import WHOLE_TOWER, Dedup, TowerOptions

TOWERS = ("llava-next-7b", "internvl3-8b", "smolvlm-2.2b", "qwen2.5-vl-7b", "qwen3-vl-8b")
TAKE_VIDEOS = ("qwen2.5-vl-7b", "qwen3-vl-8b")
PARTS = ("prepare", "vision", "selection", "prefill", "decode")
#: The sizes whose answers are timed.
TIMED_SIZES: dict[str, Callable[[], Published]] = {name: partial(SIZES.__getitem__, name) for name in SIZES} | SHAPES
TEXT = "?" * 60
#: Factor of the random weights of narrow towers.
SHARPER = 5.0
TIMED = ("receipts", "screenshots", "photographs")
Json = dict[str, Any]

SIDES = {
    "unpruned": Pruning(method="none", keep=1.0),
    "keep 0.222": Pruning(keep=0.222),
    "keep 0.222, dedup": Pruning(keep=0.222, dedup="exact"),
    "keep 0.222, dedup, tower_keep 0.5": Pruning(keep=0.222, dedup="exact", tower_keep=0.5),
}
#: What answers once before the rounds; the least work.
WARM_UP = "keep 0.222, dedup, tower_keep 0.5"


def narrow_tower(published: Published) -> Published:
    """Return a size with the published tiles and patches, and two narrow layers in both models."""
    small = narrow(published)
    text, vision = dict(small.config["text_config"]), dict(small.config["vision_config"])
    text |= {"num_hidden_layers": 2}
    if "depth" in vision:
        vision.pop("num_hidden_layers")
        vision |= {"depth": 2, "num_heads": 2, "out_hidden_size": 512}
        text |= {"hidden_size": 512}
        if "fullatt_block_indexes" in vision:
            vision |= {"fullatt_block_indexes": [1]}
        if "deepstack_visual_indexes" in vision:
            vision |= {"deepstack_visual_indexes": [0]}
    return replace(small, config=small.config | {"text_config": text, "vision_config": vision})


def with_text_layers(published: Published, count: int | None) -> Published:
    """Return a size with that many layers in its language model; None leaves it whole."""
    if count is None:
        return published
    text = published.config["text_config"] | {"num_hidden_layers": count}
    return replace(published, config=published.config | {"text_config": text})


def conversations(kind: str, frames: int | None = None) -> list[Conversation]:
    """Return a question about each picture of a kind, or about the first ``frames`` frames of a video, or all."""
    if kind in VIDEOS:
        return [read_conversation([video_message(TEXT, VIDEOS[kind]()[:frames], fps=4.0)])]
    return [read_conversation([user_message(TEXT, image)]) for image in KINDS[kind]()]


@torch.no_grad()
def sharpen(family: Family) -> None:
    """Enlarge random weights, so that attention is not uniform and leaving patches out changes something."""
    for weight in family.model.parameters():
        if weight.ndim > 1:
            weight.mul_(SHARPER)


@torch.inference_mode()
def share(family: Family, published: Family, asked: Sequence[Conversation], dedup: Dedup) -> Json:
    """Return how much of some pictures or a video a tower encodes, and the FLOPs that are left of the published one.

    The mean relative error of the tokens is that of the narrow tower with its random weights.
    """
    totals = dict.fromkeys(("patches", "encoded", "flops", "saved_flops"), 0)
    errors: list[Tensor] = []
    for conversation in asked:
        prompt, run = family.prepare(conversation), family.tower_run(TowerOptions(dedup))
        (images,), (whole,) = family.encode_run([prompt], run), family.encode([prompt], WHOLE_TOWER)
        for use in run.uses(published, [prompt]):
            for name, value in use._asdict().items():
                totals[name] += value
        totals["flops"] += published.vision_flops(prompt)
        for image, expected in zip(images, whole, strict=True):
            errors.append((image.features - expected.features).norm(dim=1) / expected.features.norm(dim=1))
    return totals | {"relative_error": float(torch.cat(errors).mean())}


def shares(names: Sequence[str]) -> list[Json]:
    rows = []
    for name in names:
        torch.manual_seed(0)
        family = build(narrow_tower(SIZES[name]), "cpu", torch.float32)
        sharpen(family)
        published = build(SIZES[name], "meta", torch.float32)
        kinds = [*KINDS, *(VIDEOS if name in TAKE_VIDEOS else ())]
        for kind in kinds:
            asked = conversations(kind)
            for dedup in family.dedups:
                rows.append({"shape": name, "kind": kind, "dedup": dedup} | share(family, published, asked, dedup))
                print(f"{name}, {kind}, {dedup}: {rows[-1]['encoded']} of {rows[-1]['patches']} patches", flush=True)
    return rows


def image_processor(published: Published) -> Any:
    """Return transformers' image processor of a published size."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(published, Path(folder))
        family = FAMILIES[published.config["model_type"]]
        return family.load_processor(folder, None).image_processor


def host(names: Sequence[str], rounds: int) -> list[Json]:
    """Return the milliseconds of a core that image processors take for a photograph of 1280 x 960 pixels, in turns."""
    picture = KINDS["photographs"]()[0].resize((1280, 960), Image.Resampling.BICUBIC)
    rows = []
    for name in names:
        theirs = image_processor(SIZES[name])
        ours = with_picture_steps(theirs)
        # InternVL's processor asks its image processor for tiles.
        options = {"crop_to_patches": True} if hasattr(theirs, "crop_to_patches") else {}
        processors: dict[str, Callable[..., Any]] = {"transformers": theirs, "ours": ours}
        taken: dict[str, list[float]] = {side: [] for side in processors}
        for _ in range(rounds + 1):
            for side, processor in processors.items():
                begun = time.process_time()
                processor([picture], return_tensors="pt", **options)
                taken[side].append(1e3 * (time.process_time() - begun))
        rows.append({"shape": name} | {f"{side}_ms": median(values[1:]) for side, values in taken.items()})
    return rows


def answer_seconds(family: Family, asked: Conversation, pruning: Pruning, num_new: int) -> dict[str, float]:
    """Return the seconds of each part of an answer about pictures that are not known yet."""
    family.forget_pictures()
    run = Run(family, "benchmark", [asked], pruning, Generation(max_tokens=num_new))
    run.start()
    while not run.done:
        run.step()
    (answer,) = run.answers()
    return {part: getattr(answer.timings, part) for part in PARTS}


def times(
    name: str,
    kinds: Sequence[str],
    dtype: torch.dtype,
    rounds: int,
    num_new: int,
    text_layers: int | None = None,
    frames: int | None = None,
) -> Iterator[list[Json]]:
    """Yield after each round the median seconds of each part of an answer about a picture of a kind, for each side."""
    torch.manual_seed(0)
    family = build(with_text_layers(TIMED_SIZES[name](), text_layers), "cpu", dtype)
    if text_layers is not None:
        name = f"{name}, {text_layers} layers of text"
    for kind in kinds:
        (conversation, *_) = conversations(kind, frames)
        shown = f"{kind}, {frames} frames" if kind in VIDEOS and frames is not None else kind
        answer_seconds(family, conversation, SIDES[WARM_UP], num_new)
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for turn in range(rounds):
            for side, pruning in SIDES.items():
                runs[side].append(answer_seconds(family, conversation, pruning, num_new))
                print(f"{name}, {shown}, {side}: {sum(runs[side][-1].values()):.1f} s", flush=True)
            about = {"shape": name, "kind": shown, "rounds": turn + 1}
            yield [about | {"side": side} | summary(done, runs["unpruned"]) for side, done in runs.items()]


def summary(done: Sequence[dict[str, float]], unpruned: Sequence[dict[str, float]]) -> Json:
    """Return the medians of the parts, and of the rounds' ratios to the unpruned answer."""
    ratios = [sum(run.values()) / sum(other.values()) for run, other in zip(done, unpruned, strict=True)]
    return {"seconds": {part: median(run[part] for run in done) for part in PARTS}, "ratio": median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="*", default=TOWERS, choices=SIZES, help="shapes of the first two parts")
    parser.add_argument("--shapes", nargs="*", default=(), choices=TIMED_SIZES, help="shapes whose answers are timed")
    parser.add_argument("--text-layers", type=int, help="layers of the language model in timed answers; unset is all")
    parser.add_argument(
        "--kinds", nargs="*", default=TIMED, choices=[*KINDS, *VIDEOS], help="what they are asked about"
    )
    parser.add_argument("--frames", type=int, help="frames of a video in timed answers; unset is all 16")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"], help="of the timed answers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a timed answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results here; parts that do not run are kept")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    path: Path | None = arguments.json
    result: Json = json.loads(path.read_text()) if path is not None and path.exists() else {}

    def write() -> None:
        if path is not None:
            path.write_text(json.dumps(result, indent=2) + "\n")

    if arguments.towers:
        result |= {"shares": shares(arguments.towers)}
        result |= {"host": host(arguments.towers, arguments.rounds), "host_machine": machine("cpu")}
        write()
    # The load before the timed answers add their own.
    about = machine("cpu") | {"dtype": arguments.dtype, "tokens": arguments.tokens}
    dtype, rounds, num_new = getattr(torch, arguments.dtype), arguments.rounds, arguments.tokens
    for name in arguments.shapes:
        for timed in times(name, arguments.kinds, dtype, rounds, num_new, arguments.text_layers, arguments.frames):
            again = {(row["shape"], row["kind"]) for row in timed}
            kept = [row for row in result.get("times", []) if (row["shape"], row["kind"]) not in again]
            result |= {"times": kept + timed, "times_machine": about}
            write()


if __name__ == "__main__":
    main()

"""Stages `export` and `evaluate`: write mini's folder, and measure it on unseen test scenes."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from benchmarks.mini.language import build
from tops_engine.bench.run import run_bench
from tops_engine.bench.splits import FIRST_SEEDS
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.mini import mini_path
from tops_engine.mini.scenes import generate
from tops_engine.settings import ModelSpec, Pruning


def export(folder: Path, settings: Any) -> None:
    """Write the trained model as float16 safetensors, with its processor, and shorten the training log."""
    processor = AutoProcessor.from_pretrained(folder / "processor")
    model = build(folder, settings, processor)
    model.load_state_dict(torch.load(folder / "language.pt", map_location="cpu")["model"])
    model.half().save_pretrained(settings.weights)
    processor.save_pretrained(settings.weights)
    with (settings.weights / "training_log.jsonl").open("w") as log:
        for stage in ("tower", "language"):
            lines = [line for line in (folder / f"{stage}.log").read_text().splitlines() if line.startswith("{")]
            entries = [json.loads(line) for line in lines]
            log.writelines(json.dumps(entry) + "\n" for entry in entries if len(entry) > 6)


def evaluate(settings: Any, device: torch.device) -> None:
    """Run `tops bench` on the shipped weights; write its figures to accuracy.json and print [CLS]'s attention."""
    engine = Engine.load(ModelSpec(model="mini", device=device.type))
    prunings = [Pruning(method=method, keep=keep) for method in ("tops", "random") for keep in (0.222, 0.111, 0.056)]
    result = run_bench(engine, prunings, settings.test_scenes)
    (mini_path() / "accuracy.json").write_text(result.model_dump_json(indent=1) + "\n")
    print(result.table())
    print(f"{100 * attention_on_objects(engine, 200):.0f} % of the [CLS] attention lies on objects")


def attention_on_objects(engine: Engine, num_scenes: int) -> float:
    """Return the share of [CLS]'s attention to patches that is on patches of objects, mean over unseen scenes."""
    shares = []
    for seed in range(FIRST_SEEDS["test"], FIRST_SEEDS["test"] + num_scenes):
        scene = generate(seed, "test")
        prompt = engine.family.prepare(read_conversation([user_message("?", scene.image)]))
        with torch.inference_mode():
            ((tokens,),) = engine.family.encode([prompt])
            attention = tokens.vision_attention()
        shares.append(float(attention[scene.object_patches(round(len(attention) ** 0.5))].sum() / attention.sum()))
    return sum(shares) / len(shares)


def sample(path: Path) -> None:
    """Write the sample picture of `make demo`."""
    from tops_engine.mini.scenes import sample_picture

    sample_picture().save(path, quality=92)

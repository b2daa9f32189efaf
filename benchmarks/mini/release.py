"""Stages `export` and `evaluate`: write mini's folder, and measure it on unseen test scenes."""

import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from benchmarks.mini.data import pixels
from benchmarks.mini.language import RANDOM_SHARE, build
from benchmarks.mini.tower import cls_share, normalise
from tops_engine.mini.questions import KINDS, Question, is_correct
from tops_engine.mini.scenes import Scene, generate

BATCH = 96
LONGEST = {"describe": 110}  # new tokens; all other kinds 24
CONDITIONS = ("unpruned", "oracle", "random")


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


class Answerer:
    """Answer questions about scenes from chosen visual tokens, by greedy generation in batches."""

    def __init__(self, weights: Path, device: torch.device):
        self.processor = AutoProcessor.from_pretrained(weights)
        self.model = LlavaForConditionalGeneration.from_pretrained(weights, dtype=torch.float32).to(device).eval()
        self.device = device
        self.grid: int = self.model.config.vision_config.image_size // self.model.config.vision_config.patch_size

    @torch.no_grad()
    def see(self, images: np.ndarray) -> Tensor:
        """Map pictures uint8 (b, s, s, 3) to projected visual tokens (b, grid ** 2, text width)."""
        parts = []
        for start in range(0, len(images), BATCH):
            with torch.autocast(self.device.type, torch.bfloat16):
                output = self.model.get_image_features(normalise(images[start : start + BATCH], self.device))
            parts.append(torch.stack(list(output.pooler_output)).float())
        return torch.cat(parts)

    @torch.no_grad()
    def answer(self, visual: list[Tensor], questions: list[Question], longest: int) -> list[str]:
        """Answer a batch; ``visual`` holds each question's kept tokens (k, width) in order."""
        tokenizer = self.processor.tokenizer
        embed = self.model.get_input_embeddings()
        inputs = []
        for tokens, question in zip(visual, questions, strict=True):
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            prompt = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            before, after = (
                torch.tensor(tokenizer.encode(part), device=self.device) for part in prompt.split("<image>")
            )
            inputs.append(torch.cat([embed(before), tokens, embed(after)]))
        width = max(map(len, inputs))
        embedded = torch.stack([torch.cat([x.new_zeros(width - len(x), x.shape[1]), x]) for x in inputs])
        mask = torch.stack([torch.arange(width, device=self.device) >= width - len(x) for x in inputs]).long()
        with torch.autocast(self.device.type, torch.bfloat16):
            output = self.model.generate(
                inputs_embeds=embedded, attention_mask=mask, max_new_tokens=longest, do_sample=False
            )
        return [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]


def choose(condition: str, scene: Scene, grid: int, rng: random.Random) -> list[int]:
    """Return the kept patches: all, those of all objects, or 5.6 % drawn at random (for each scene anew)."""
    total = grid**2
    if condition == "unpruned":
        return list(range(total))
    if condition == "oracle":
        return scene.object_patches(grid)
    return sorted(rng.sample(range(total), round(total * RANDOM_SHARE)))


def evaluate(settings: Any, device: torch.device) -> None:
    """Measure accuracy per kind of question on test scenes 0 .. n - 1, and [CLS]'s attention; write accuracy.json."""
    begun, count = time.monotonic(), settings.test_scenes
    answerer = Answerer(settings.weights, device)
    grid = answerer.grid
    scenes = [generate(seed, "test") for seed in range(count)]
    images = np.stack([pixels(scene.image, grid) for scene in scenes])
    visual = answerer.see(images)
    objects = torch.zeros(count, grid**2)
    for index, scene in enumerate(scenes):
        objects[index, scene.object_patches(grid)] = 1
    share = cls_share(answerer.model.model.vision_tower, normalise(images[:200], device), objects[:200].to(device))
    result: dict[str, Any] = {
        "scenes": count,
        "visual_tokens": grid**2,
        "kept_share": {"unpruned": 1.0, "oracle": round(objects.mean().item(), 4), "random": RANDOM_SHARE},
        "cls_attention_on_objects": round(share, 4),
        "questions": {},
        "accuracy": {},
    }
    asked = [
        (index, q) for kind in KINDS for index, scene in enumerate(scenes) for q in scene.questions if q.kind == kind
    ]
    for condition in CONDITIONS:
        rng = random.Random(f"mini evaluate {condition}")
        kept = [choose(condition, scene, grid, rng) for scene in scenes]
        right: dict[str, list[bool]] = defaultdict(list)
        for kind in KINDS:
            jobs = [(index, q) for index, q in asked if q.kind == kind]
            for start in range(0, len(jobs), BATCH):
                part = jobs[start : start + BATCH]
                tokens = [visual[index, kept[index]] for index, _ in part]
                answers = answerer.answer(tokens, [q for _, q in part], LONGEST.get(kind, 24))
                right[kind] += [is_correct(q, text) for (_, q), text in zip(part, answers, strict=True)]
        everything = [hit for hits in right.values() for hit in hits]
        result["questions"] = {kind: len(hits) for kind, hits in right.items()} | {"all": len(everything)}
        result["accuracy"][condition] = {kind: round(float(np.mean(hits)), 4) for kind, hits in right.items()}
        result["accuracy"][condition]["all"] = round(float(np.mean(everything)), 4)
        print(json.dumps({condition: result["accuracy"][condition]}), round(time.monotonic() - begun), "s", flush=True)
    (settings.weights / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")


def sample(path: Path) -> None:
    """Write the sample picture of `make demo`."""
    from tops_engine.mini.scenes import sample_picture

    sample_picture().save(path, quality=92)

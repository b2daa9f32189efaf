"""Stage `language`: freeze the tower, train the projector and the language model on packed questions.

The policies of packing.py drop visual tokens, and kept tokens get contiguous positions. So the model must read "where"
from the tokens, and learns to count from any subset that holds the objects.
"""

import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoProcessor,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from benchmarks.mini.attention import PLAIN
from benchmarks.mini.data import open_maps, pixels, rendered
from benchmarks.mini.packing import IGNORED, POLICIES, SHARES, Packer, Row, Speller, collate
from benchmarks.mini.threads import Threads
from benchmarks.mini.tower import LabelledTower, advance, make_optimisers, normalise, rate, save, vision_config
from tops_engine.mini.scenes import Scene, generate

# Attention scores stay under 32 MB; every allocation above that size costs page faults.
WHOLE, PRUNED = (400, 14), (232, 24)  # tokens per row and rows per step, of batches with all and with few visual tokens
EASY = 0.08  # share of the training that uses the emptiest quarter of the scenes
RANDOM_SHARE = 0.056


def rms_norm(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, self.weight.shape, self.weight.to(hidden.dtype), self.variance_epsilon)


def build(folder: Path, settings: Any, processor: Any) -> LlavaForConditionalGeneration:
    """Return mini with the trained tower and an untrained projector and language model."""
    tokenizer = processor.tokenizer
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.text_width,
        intermediate_size=-(-settings.text_width // 6) * 16,
        num_hidden_layers=settings.text_layers,
        num_attention_heads=settings.text_width // 32,
        num_key_value_heads=settings.text_width // 32,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        **ids,
    )
    config = LlavaConfig(
        vision_config=vision_config(settings.grid, settings.vision_width, settings.vision_layers),
        text_config=text,
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=settings.grid**2,
        tie_word_embeddings=False,
        **ids,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**ids, do_sample=False)
    projector = model.model.multi_modal_projector
    projector.linear_1.reset_parameters()
    projector.linear_2.reset_parameters()
    labelled = LabelledTower(config.vision_config, settings.grid)
    labelled.load_state_dict(torch.load(folder / "tower.pt", map_location="cpu")["model"])
    model.model.vision_tower.load_state_dict(labelled.tower.state_dict())
    model.model.vision_tower.requires_grad_(False)
    # The projector starts from the tower's dense heads: one hidden unit for each class except background.
    rows = min(settings.text_width, len(labelled.dense.weight) - 1)
    with torch.no_grad():
        projector.linear_1.weight[:rows] = 0.3 * labelled.dense.weight[1 : rows + 1]
        projector.linear_1.bias[:rows] = 0.3 * labelled.dense.bias[1 : rows + 1]
    return model


class Reader:
    """The projector and language model as a function of packed rows and of the frozen tower's features.

    Rows are padded to a ``multiple`` of a length, so that compiled layers meet few lengths.
    """

    def __init__(self, model: LlavaForConditionalGeneration, device: torch.device, multiple: int = 1):
        self.model, self.device, self.multiple = model.to(device), device, multiple
        model.model.language_model.set_attn_implementation(PLAIN)
        model.model.vision_tower.set_attn_implementation(PLAIN)

    @torch.no_grad()
    def features(self, images: np.ndarray) -> Tensor:
        """Map pictures uint8 (b, s, s, 3) to the tower's features (b, grid ** 2, width)."""
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden: Tensor = self.model.model.vision_tower(normalise(images, self.device)).last_hidden_state
        return hidden[:, 1:]

    def logits(self, rows: list[Row], features: Tensor, first: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits (m, vocabulary) of the m labelled positions, and the collated batch.

        ``features`` (b, grid ** 2, width) holds all pictures; ``first`` the index of each row's first one.
        """
        batch = collate(rows, self.device, self.multiple)
        ids = batch["ids"]
        inner = self.model.model
        with torch.autocast(self.device.type, torch.bfloat16):
            visual = inner.multi_modal_projector(features).flatten(0, 1)
            places = torch.tensor(first, device=self.device)[:, None] * features.shape[1] + (-1 - ids)
            embedded = inner.language_model.embed_tokens(ids.clamp(min=0)).to(visual.dtype)
            picture = ids < 0
            embedded = embedded.masked_scatter(picture[..., None], visual[places[picture]])
            hidden = self.hidden_states(embedded, batch)
            chosen = batch["labels"][:, 1:] != IGNORED
            return self.model.lm_head(hidden[:, :-1][chosen]).float(), batch

    def hidden_states(self, embedded: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Run the language model on a collated batch: (b, n, width) -> the same."""
        output = self.model.model.language_model(
            inputs_embeds=embedded, attention_mask=batch["mask"], position_ids=batch["positions"], use_cache=False
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


class Check:
    """Teacher-forced exact match on unseen test scenes: an answer is correct if greedy decoding would give it."""

    def __init__(self, reader: Reader, packer: Packer, grid: int, count: int):
        self.reader, self.packer, self.grid = reader, packer, grid
        self.seeds = range(800_000, 800_000 + count)
        self.scenes: list[Scene] = [generate(seed, "test") for seed in self.seeds]
        self.features = reader.features(np.stack([pixels(s.image, grid) for s in self.scenes]))

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """Return exact match per kind, and the loss, with all tokens, the oracle's tokens, and 5.6 % random tokens."""
        rng, total = random.Random(0), self.grid**2
        result: dict[str, Any] = {}
        for name in ("all", "oracle", "random"):
            right: dict[str, list[bool]] = defaultdict(list)
            losses: list[float] = []
            for start in range(0, len(self.scenes), 25):
                rows = []
                for seed, scene in zip(self.seeds[start : start + 25], self.scenes[start : start + 25], strict=True):
                    kept = {
                        "all": list(range(total)),
                        "oracle": scene.object_patches(self.grid),
                        "random": sorted(rng.sample(range(total), round(total * RANDOM_SHARE))),
                    }[name]
                    rows.append(self.packer.test_row(seed, kept, scene.questions, 2 * total + 400))
                logits, batch = self.reader.logits(rows, self.features[start : start + 25], list(range(len(rows))))
                chosen = batch["labels"][:, 1:] != IGNORED
                wrong = torch.zeros(chosen.shape)
                expected = batch["labels"][:, 1:][chosen]
                wrong[chosen.cpu()] = (logits.argmax(-1) != expected).float().cpu()
                losses += functional.cross_entropy(logits, expected, reduction="none").tolist()
                for row, blocks, misses in zip(rows, batch["blocks"][:, 1:].cpu(), wrong, strict=True):
                    for number, kind in enumerate(row.kinds, 1):
                        right[kind].append(not bool(misses[blocks == number].any()))
            result[name] = {kind: round(float(np.mean(hits)), 3) for kind, hits in sorted(right.items())}
            result[name]["mean"] = round(float(np.mean([h for hits in right.values() for h in hits])), 3)
            result[name]["loss"] = round(float(np.mean(losses)), 4)
        return result


def train(folder: Path, settings: Any, device: torch.device) -> None:
    """Train until ``settings.minutes`` of this run or ``settings.total_minutes`` of all runs have passed."""
    torch.manual_seed(0)
    LlamaRMSNorm.forward = rms_norm
    processor = AutoProcessor.from_pretrained(folder / "processor")
    model = build(folder, settings, processor)
    reader = Reader(model, device)
    optimisers = make_optimisers(model)
    checkpoint, step, spent = folder / "language.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        trained = {name: value for name, value in state["model"].items() if ".vision_tower." not in name}
        model.load_state_dict(trained, strict=False)  # the tower may have been trained further since
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        step, spent = state["step"], state["spent"]
    speller = Speller(processor.tokenizer)
    packer = Packer(speller, settings.grid, "train")
    check = Check(reader, Packer(speller, settings.grid, "test"), settings.grid, 100)
    images, patches, _ = open_maps(folder, settings.scenes, settings.grid, "r")
    count = rendered(folder)
    crowd = np.concatenate([(patches[i : i + 5000, :, -1] == 1).sum(1) for i in range(0, count, 5000)])
    total, started, last = settings.total_minutes * 60, time.monotonic(), time.monotonic()
    threads, running, place, checked = Threads(settings.workers), 0.0, step * 20, spent
    while spent < total and time.monotonic() - started < settings.minutes * 60:
        rng = random.Random(f"mini language {step}")
        length, size = WHOLE if rng.random() < 0.4 else PRUNED
        seeds: list[int] = []
        while len(seeds) < size + 1:
            if spent / total > EASY or crowd[place % count] <= 6:
                seeds.append(place % count)
            place += 1
        rows = [
            packer.row(
                seed, seeds[i + 1], "all" if length == WHOLE[0] else rng.choices(POLICIES, SHARES)[0], length, rng
            )
            for i, seed in enumerate(seeds[:-1])
        ] + [packer.blind_row(length, rng)]
        features = reader.features(images[np.array(seeds)])
        logits, batch = reader.logits(rows, features, [*range(size), 0])
        chosen = batch["labels"][:, 1:] != IGNORED
        weights = batch["weights"][:, 1:][chosen]
        losses = functional.cross_entropy(logits, batch["labels"][:, 1:][chosen], reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        torch.autograd.backward(loss)
        advance(optimisers, rate(spent / total, settings.rate))
        step += 1
        running = loss.item() if running == 0 else 0.98 * running + 0.02 * loss.item()
        threads.report(time.monotonic() - last, length * size)
        spent, last = spent + time.monotonic() - last, time.monotonic()
        if step % 25 == 0:
            entry: dict[str, Any] = {"stage": "language", "step": step, "minutes": round(spent / 60, 2)}
            entry |= {"loss": round(running, 4), "threads": threads.now, "pairs": sum(len(r.kinds) for r in rows)}
            if spent - checked > 150:
                checked = spent
                entry |= check.run()
                save(checkpoint, model, optimisers, step, spent)
            print(json.dumps(entry), flush=True)
    entry = {
        "stage": "language",
        "step": step,
        "minutes": round(spent / 60, 2),
        "loss": round(running, 4),
    } | check.run()
    print(json.dumps(entry), flush=True)
    save(checkpoint, model, optimisers, step, spent)

"""Train the projector and low-rank adapters of SmolLM2 on questions about mini's training scenes.

No visual token is ever dropped in training, as in the training of published models. Tower and language model are
frozen.
"""

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from benchmarks.mini.data import objects_of, pixels
from benchmarks.mini.language import Check, Reader, rms_norm
from benchmarks.mini.packing import IGNORED, Packer, Row, Speller
from benchmarks.mini.tower import advance, rate
from benchmarks.smollm2.alignment import align
from benchmarks.smollm2.model import GRID, TURNS, build, make_processor
from tops_engine.mini.scenes import generate

RANK = 12  # adapters and projector in half precision: 8 MB
LENGTH = 500  # tokens of a row: one picture and about 18 questions
EASY_SHARE, EASY_OBJECTS = 0.1, 6  # the first steps see scenes of few objects only
BLIND_EVERY = 4  # steps between two rows without a picture
EVERY = 100  # steps between two checkpoints


def adapted(model: LlavaForConditionalGeneration) -> list[nn.Parameter]:
    """Freeze the tower and the language model, add adapters to its matrices, and return what is trained."""
    model.requires_grad_(False)
    for parameter in model.model.language_model.parameters():
        # Parameters only: rotary frequencies in bfloat16 would be other frequencies.
        parameter.data = parameter.data.to(torch.bfloat16)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=r".*language_model\.layers\..*_proj")
    inject_adapter_in_model(config, model)
    model.model.multi_modal_projector.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # adapters begin in the type of what they adapt, too coarse for small steps
        parameter.data = parameter.data.float()
    return trained


def seeds_of(step: int, steps: int, rows: int) -> list[int]:
    """Return the scenes of a step; every scene is used about once."""
    rng = random.Random(f"smollm2 scenes {step}")
    seeds: list[int] = []
    while len(seeds) < rows:
        seed = rng.randrange(10**6)
        if step > EASY_SHARE * steps or len(objects_of(seed, "train")) <= EASY_OBJECTS:
            seeds.append(seed)
    return seeds


def make_rows(packer: Packer, step: int, seeds: list[int]) -> list[Row]:
    """Return the packed questions about all scenes of a step but the last, some rows with the next scene as well.

    In some steps the last row has questions without a picture. It is as long as the others, so padding costs nothing.
    """
    rng = random.Random(f"smollm2 questions {step}")
    rows = [packer.row(seed, other, "all", LENGTH, rng) for seed, other in itertools.pairwise(seeds)]
    return rows if step % BLIND_EVERY else [*rows[:-1], packer.blind_row(LENGTH, rng)]


def loss_of(reader: Reader, rows: list[Row], seeds: list[int]) -> Tensor:
    """Return the mean loss of the answers' tokens, nats."""
    features = reader.features(np.stack([pixels(generate(seed, "train").image, GRID) for seed in seeds]))
    logits, batch = reader.logits(rows, features, [*range(len(rows) - 1), 0])
    chosen = batch["labels"][:, 1:] != IGNORED
    weights = batch["weights"][:, 1:][chosen]
    losses = functional.cross_entropy(logits, batch["labels"][:, 1:][chosen], reduction="none")
    return (losses * weights).sum() / weights.sum()


def train(folder: Path, settings: Any) -> None:
    """Train until ``settings.steps`` steps of all runs; continue a run that was stopped."""
    torch.manual_seed(0)
    torch.set_num_threads(settings.threads)
    LlamaRMSNorm.forward = rms_norm
    processor = make_processor()
    model = build(processor)
    trained = adapted(model)
    optimiser = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    if settings.compile:
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=False)
    reader = Reader(model, torch.device("cpu"), multiple=LENGTH)
    speller = Speller(processor.tokenizer)
    packer = Packer(speller, GRID, "train", TURNS)
    check = Check(reader, Packer(speller, GRID, "test", TURNS), GRID, settings.check_scenes)
    checkpoint, step, spent = folder / "adapters.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu")
        model.load_state_dict(state["model"], strict=False)
        optimiser.load_state_dict(state["optimiser"])
        step, spent = state["step"], state["spent"]
    else:
        print(json.dumps({"alignment": {"error": round(align(model, reader, speller, GRID), 4)}}), flush=True)
    running, last = 0.0, time.monotonic()
    while step < settings.steps:
        seeds = seeds_of(step, settings.steps, settings.rows + 1)
        loss = loss_of(reader, make_rows(packer, step, seeds), seeds)
        torch.autograd.backward(loss)
        advance([optimiser], rate(step / settings.steps, settings.rate))
        step += 1
        running = loss.item() if running == 0 else 0.95 * running + 0.05 * loss.item()
        spent, last = spent + time.monotonic() - last, time.monotonic()
        if step % 10 == 0 or step == settings.steps:
            entry: dict[str, Any] = {"step": step, "minutes": round(spent / 60, 2), "loss": round(running, 4)}
            if step % EVERY == 0 or step == settings.steps:
                with torch.compiler.set_stance("force_eager"):  # its rows have many lengths
                    entry |= check.run()
                _save(checkpoint, model, optimiser, step, spent)
            print(json.dumps(entry), flush=True)
            last = time.monotonic()


def _save(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int, spent: float) -> None:
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = {
        "model": {name: value for name, value in model.state_dict().items() if name in names},
        "optimiser": optimiser.state_dict(),
        "step": step,
        "spent": spent,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)

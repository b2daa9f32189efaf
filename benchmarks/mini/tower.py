"""Stage `tower`: train the CLIP vision tower on dense labels of every patch and a multi-label loss on [CLS].

The dense heads are linear and read the hidden state that feeds the projector (the output of the last layer). So the
features contain for every patch: the kind of its content, its colour, shape, digit or letters, whether it holds an
object's centre, and its own row and column. Labels are local: no patch has a label of an object that it does not show.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.mini.attention import PLAIN
from benchmarks.mini.data import (
    COLUMNS,
    KINDS,
    NONE,
    PATCH,
    PRESENCE,
    labels_of,
    letters_of,
    objects_of,
    open_maps,
    pixels,
    rendered,
)
from benchmarks.mini.threads import Threads
from tops_engine.mini.questions import COLOURS, SHAPES
from tops_engine.mini.scenes import generate

READING = 2  # batches of reading scenes to one of ordinary scenes
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = (len(KINDS), len(COLOURS), len(SHAPES), 10, 27, 27, 27, 27)  # classes of all columns but the anchor
WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


def vision_config(grid: int, width: int, layers: int) -> CLIPVisionConfig:
    """Return the tower's configuration for a grid x grid picture of 14-pixel patches."""
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        image_size=grid * PATCH,
        patch_size=PATCH,
        projection_dim=width,
        hidden_act="gelu",
    )


class LabelledTower(nn.Module):
    """A CLIP vision tower with linear heads for its dense labels and for [CLS]."""

    def __init__(self, config: CLIPVisionConfig, grid: int):
        super().__init__()
        self.tower = CLIPVisionModel(config)
        self.tower.set_attn_implementation(PLAIN)
        self.grid = grid
        self.dense = nn.Linear(config.hidden_size, sum(SIZES) + 1 + 2 * grid + 26)
        self.presence = nn.Linear(config.hidden_size, PRESENCE)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised pictures (b, 3, s, s) to dense logits (b, grid ** 2, classes) and presence logits (b, p)."""
        output = self.tower(images)
        return self.dense(output.last_hidden_state[:, 1:]), self.presence(output.pooler_output)

    def split(self, dense: Tensor) -> list[Tensor]:
        """Split dense logits into kind, colour, shape, digit, 4 letters, anchor, row, column and 26 near letters."""
        return list(torch.split(dense, [*SIZES, 1, self.grid, self.grid, 26], dim=-1))

    def loss(self, dense: Tensor, presence: Tensor, patches: Tensor, present: Tensor, near: Tensor) -> Tensor:
        """Sum the label losses; patches (b, grid ** 2, 9) and present (b, p) as stored by `render`.

        near (b, grid ** 2, 26) marks the letters in a patch's own column, from which reading is learned.
        """
        parts = self.split(dense.float())
        labels = patches.long()
        total = functional.binary_cross_entropy_with_logits(presence.float(), present.float()) * 10
        for column, weight in enumerate(WEIGHTS):
            chosen = labels[..., column] != NONE
            if chosen.any():
                total = total + weight * functional.cross_entropy(parts[column][chosen], labels[..., column][chosen])
        chosen = labels[..., -1] != NONE
        anchors = parts[len(SIZES)][..., 0]
        total = total + functional.binary_cross_entropy_with_logits(anchors[chosen], labels[..., -1][chosen].float())
        index = torch.arange(self.grid**2, device=dense.device).expand(len(dense), -1)
        rows = functional.cross_entropy(parts[-3].flatten(0, 1), (index // self.grid).flatten())
        columns = functional.cross_entropy(parts[-2].flatten(0, 1), (index % self.grid).flatten())
        words = labels[..., 4] != NONE
        letters = functional.binary_cross_entropy_with_logits(parts[-1][words], near[words].float()) * 13
        return total + 0.2 * (rows + columns) + (letters if words.any() else 0)


def normalise(images: np.ndarray, device: torch.device) -> Tensor:
    """Turn uint8 pictures (b, s, s, 3) into CLIP-normalised floats (b, 3, s, s)."""
    values = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (values - mean) / std


@torch.no_grad()
def check(model: LabelledTower, count: int, device: torch.device) -> dict[str, float]:
    """Return accuracies on unseen test scenes, per object patch, and [CLS]'s attention share on objects."""
    model.eval()
    scenes = [generate(seed, "test") for seed in range(900_000, 900_000 + count)]
    labels = [labels_of(scene.objects, model.grid) for scene in scenes]
    patches = torch.from_numpy(np.stack([dense for dense, _ in labels])).long().to(device)
    images = normalise(np.stack([pixels(scene.image, model.grid) for scene in scenes]), device)
    with torch.autocast(device.type, torch.bfloat16):
        dense, presence = model(images)
    result = {}
    parts = model.split(dense.float())
    right = torch.ones_like(patches[..., 0], dtype=torch.bool)
    for column in range(len(SIZES)):
        chosen = patches[..., column] != NONE
        hit = parts[column].argmax(-1) == patches[..., column]
        right &= hit | ~chosen
        result[COLUMNS[column]] = hit[chosen].float().mean().item()
    words = patches[..., 4] != NONE
    result["object"] = right[patches[..., 0] > 0].float().mean().item()
    result["word"] = right[words].float().mean().item()
    chosen = patches[..., -1] != NONE
    result["anchor"] = ((parts[len(SIZES)][..., 0] > 0) == patches[..., -1].bool())[chosen].float().mean().item()
    present = torch.from_numpy(np.stack([p for _, p in labels])).to(device)
    near = torch.from_numpy(np.stack([letters_of(scene.objects, model.grid) for scene in scenes])).to(device).bool()
    result["near"] = ((parts[-1] > 0) == near)[near & words[..., None]].float().mean().item()
    result["presence"] = ((presence.float() > 0) == present.bool())[present.bool()].float().mean().item()
    result["cls_share"] = cls_share(model.tower, images[:64], patches[:64, :, 0] > 0)
    result["object_patches"] = (patches[..., 0] > 0).float().mean().item()
    model.train()
    return {key: round(value, 4) for key, value in result.items()}


@torch.no_grad()
def cls_share(tower: CLIPVisionModel, images: Tensor, objects: Tensor) -> float:
    """Return the share of the last layer's [CLS] attention to patches that lies on object patches (b, grid ** 2)."""
    kept: str = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    attention = tower(images, output_attentions=True).attentions[-1].float()[:, :, 0, 1:].mean(1)
    tower.set_attn_implementation(kept)
    share = (attention * objects).sum(-1) / attention.sum(-1)
    return float(share.mean())


def rate(progress: float, peak: float, warmup: float = 0.02) -> float:
    """Return the learning rate at a progress of 0 .. 1: linear warm-up, then linear decay to zero."""
    return peak * min(progress / warmup, max(0.0, 1 - progress) / (1 - warmup))


def train(folder: Path, settings: Any, device: torch.device) -> None:
    """Train until ``settings.minutes`` of this run or ``settings.total_minutes`` of all runs have passed."""
    torch.manual_seed(0)
    model = LabelledTower(vision_config(settings.grid, settings.vision_width, settings.vision_layers), settings.grid)
    model.to(device)
    optimisers = make_optimisers(model)
    step, spent = 0, 0.0
    checkpoint = folder / "tower.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        step, spent = state["step"], state["spent"]
    sources = [(folder, settings.scenes)] + [(folder / "reading", settings.reading_scenes)] * READING
    maps = [open_maps(path, count, settings.grid, "r") for path, count in sources]
    total, started, last = settings.total_minutes * 60, time.monotonic(), time.monotonic()
    threads = Threads(settings.workers)
    while spent < total and time.monotonic() - started < settings.minutes * 60:
        (path, _), (images, patches, presence) = sources[step % len(maps)], maps[step % len(maps)]
        begin = step // len(maps) * settings.batch * max(1, len(maps) - 1) % (rendered(path) - settings.batch + 1)
        begin = (begin + step % len(maps) * settings.batch) % (rendered(path) - settings.batch + 1)
        rows = slice(begin, begin + settings.batch)  # scenes are independent draws: no need to shuffle them
        with torch.autocast(device.type, torch.bfloat16):
            read, cls = model(normalise(images[rows], device))
        dense, present = (torch.from_numpy(values[rows]).to(device) for values in (patches, presence))
        objects = [objects_of(seed, "train", path != folder) for seed in range(begin, begin + settings.batch)]
        near = torch.from_numpy(np.stack([letters_of(items, settings.grid) for items in objects])).to(device)
        loss = model.loss(read, cls, dense, present, near)
        torch.autograd.backward(loss)
        advance(optimisers, rate(spent / total, settings.rate))
        step += 1
        threads.report(time.monotonic() - last, settings.batch)
        spent, last = spent + time.monotonic() - last, time.monotonic()
        if step % 50 == 0:
            entry: dict[str, float] = {"step": step, "minutes": round(spent / 60, 2), "loss": round(loss.item(), 4)}
            entry["threads"] = threads.now
            if step % 400 == 0:
                entry |= check(model, 100, device)
            print(json.dumps({"stage": "tower"} | entry), flush=True)
        if step % 400 == 0:
            save(checkpoint, model, optimisers, step, spent)
    entry = {"step": step, "minutes": round(spent / 60, 2)} | check(model, 300, device)
    print(json.dumps({"stage": "tower"} | entry), flush=True)
    save(checkpoint, model, optimisers, step, spent)


def make_optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers, AdamW for everything else that is trained."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = [name for name, parameter in trained.items() if parameter.ndim == 2 and ".layers." in name]
    others = [parameter for name, parameter in trained.items() if name not in matrices]
    return [
        torch.optim.Muon([trained[n] for n in matrices], lr=1e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
    ]


def advance(optimisers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    """Clip the gradients to norm 1 and take a step."""
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    nn.utils.clip_grad_norm_([parameter for group in groups for parameter in group["params"]], 1.0)
    for group in groups:
        group["lr"] = learning_rate
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()


def save(path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer], step: int, spent: float) -> None:
    """Write a checkpoint; if the run is killed while writing, the previous checkpoint remains."""
    states = [optimiser.state_dict() for optimiser in optimisers]
    state = {"model": model.state_dict(), "optimisers": states, "step": step, "spent": spent}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)

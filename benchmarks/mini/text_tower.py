"""Stage `text`: train a CLIP text tower for mini's frozen vision tower, so that text-guided methods run on mini.

Patches and questions are embedded in one space, and the files have CLIP's published layout. In CLIP, patches are *less*
similar to a text that names what they show, so TRIM and CDPruner negate the similarity. This tower is trained to have
that property for each patch: low cosine and low dot product on the patches of the objects that a question is about.
"""

import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from benchmarks.mini.data import objects_of, pixels
from benchmarks.mini.tower import normalise, rate
from tops_engine.mini.questions import Question, SceneObject, ask
from tops_engine.mini.scenes import SIDE, Split, generate, patches_of_box

END = "<|endoftext|>"
WIDTH, LAYERS, SPACE = 96, 2, 64
SCENES_PER_STEP = 24


class TextTower(nn.Module):
    """The text tower, and the projection of patch features into its space."""

    def __init__(self, config: CLIPTextConfig, vision_tower: CLIPVisionModel):
        super().__init__()
        width = vision_tower.config.hidden_size
        self.text = CLIPTextModelWithProjection(config)
        self.norm = nn.LayerNorm(width, eps=vision_tower.config.layer_norm_eps)
        self.norm.load_state_dict(vision_tower.post_layernorm.state_dict())
        self.projection = nn.Linear(width, SPACE, bias=False)
        # Slope and offset that map a similarity to a logit, for the cosine and for the dot product.
        self.slopes = nn.Parameter(torch.tensor([10.0, 1.0]))
        self.offsets = nn.Parameter(torch.tensor([-3.0, -3.0]))

    def similarities(self, patches: Tensor, texts: Tensor, scene_of: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and dot product of texts (t, length) with the patches of their scenes: twice (t, patches).

        patches (scenes, patches, width); scene_of (t,) is the scene of each text.
        """
        ours = self.projection(self.norm(patches))[scene_of]
        embedded = self.text(input_ids=texts).text_embeds[:, None]
        return functional.cosine_similarity(ours, embedded, dim=-1), (ours * embedded).sum(-1)


def tokenizer_for(weights: Path) -> PreTrainedTokenizerFast:
    """Return mini's tokenizer with an end token of the highest number, by which CLIP's text tower pools."""
    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    tokenizer.add_special_tokens([END])
    ids = [("<s>", tokenizer.token_to_id("<s>")), (END, tokenizer.token_to_id(END))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"<s> $A {END}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=END, pad_token="<pad>", model_max_length=77
    )


@torch.no_grad()
def features(tower: CLIPVisionModel, grid: int, seeds: range, split: Split) -> Tensor:
    """Return the inputs of mini's projector for these scenes, float16 (scenes, grid * grid, width)."""
    batches = []
    for first in range(seeds.start, seeds.stop, 100):
        part = range(first, min(first + 100, seeds.stop))
        images = normalise(np.stack([pixels(generate(seed, split).image, grid) for seed in part]), torch.device("cpu"))
        batches.append(tower(images, output_hidden_states=True).hidden_states[-1][:, 1:].half())
    return torch.cat(batches)


def target(objects: list[SceneObject], question: Question, grid: int) -> Tensor:
    """Return 1 for the patches that the question is about and 0 for others, float (grid * grid,)."""
    mask = torch.zeros(grid * grid)
    for index in question.subject:
        mask[patches_of_box(objects[index].box, SIDE, grid)] = 1
    return mask


def _batch(
    tokenizer: Any, scenes: list[list[SceneObject]], grid: int, rng: random.Random
) -> tuple[Tensor, Tensor, Tensor, list[Question]]:
    asked = [(number, question) for number, objects in enumerate(scenes) for question in ask(objects, SIDE, rng)]
    questions = [question for _, question in asked]
    ids = [torch.tensor(tokenizer(question.text).input_ids) for question in questions]
    texts = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
    masks = torch.stack([target(scenes[number], question, grid) for number, question in asked])
    return texts, torch.tensor([number for number, _ in asked]), masks, questions


@torch.no_grad()
def check(model: TextTower, tokenizer: Any, tower: CLIPVisionModel, grid: int, count: int) -> dict[str, float]:
    """Return, by kind of question, the share of its subject's n patches among the n least similar, on test scenes."""
    seeds = range(900_000, 900_000 + count)
    patches = features(tower, grid, seeds, "test").float()
    scenes = [objects_of(seed, "test") for seed in seeds]
    texts, scene_of, masks, questions = _batch(tokenizer, scenes, grid, random.Random(0))
    found: dict[str, list[float]] = defaultdict(list)
    for name, similarity in zip(("cosine", "dot"), model.similarities(patches, texts, scene_of), strict=True):
        for row, mask, question in zip(similarity, masks, questions, strict=True):
            if mask.any():
                best = row.topk(int(mask.sum()), largest=False).indices
                found[f"{name} {question.kind}"].append(float(mask[best].mean()))
    return {key: round(sum(values) / len(values), 3) for key, values in sorted(found.items())}


def train(weights: Path, minutes: float, num_scenes: int) -> None:
    """Train for ``minutes``, not counting the time to draw scenes, and write the model to mini's folder ``clip``."""
    torch.manual_seed(0)
    mini = LlavaForConditionalGeneration.from_pretrained(weights, dtype=torch.float32)
    tower, grid = mini.model.vision_tower.eval(), round(mini.config.image_seq_length**0.5)
    tokenizer = tokenizer_for(weights)
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        max_position_embeddings=77,
        projection_dim=SPACE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = TextTower(text_config, tower)
    patches = features(tower, grid, range(num_scenes), "train")
    scenes = [objects_of(seed, "train") for seed in range(num_scenes)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    rng, step, started = random.Random(0), 0, time.monotonic()
    while (spent := (time.monotonic() - started) / 60) < minutes:
        chosen = rng.sample(range(num_scenes), SCENES_PER_STEP)
        texts, scene_of, masks, _ = _batch(tokenizer, [scenes[index] for index in chosen], grid, rng)
        loss = torch.zeros(())
        pairs = zip(
            model.similarities(patches[chosen].float(), texts, scene_of), model.slopes, model.offsets, strict=True
        )
        for similarity, slope, offset in pairs:
            loss = loss + functional.binary_cross_entropy_with_logits(offset - slope * similarity, masks)
        torch.autograd.backward(loss)
        for group in optimiser.param_groups:
            group["lr"] = rate(spent / minutes, 3e-3, 0.05)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        if step % 100 == 0:
            entry = {"stage": "text", "step": step, "minutes": round(spent, 2), "loss": round(loss.item(), 4)}
            print(json.dumps(entry), flush=True)
    print(json.dumps({"stage": "text", "step": step} | check(model.eval(), tokenizer, tower, grid, 200)), flush=True)
    _export(model, mini.config.vision_config, tokenizer, weights / "clip")


def _export(model: TextTower, vision_config: Any, tokenizer: Any, folder: Path) -> None:
    """Write CLIP's published layout without the vision tower's layers, which mini contains."""
    text = {name.removeprefix("text."): value for name, value in model.text.state_dict().items()}
    vision = {
        "vision_model.post_layernorm.weight": model.norm.weight,
        "vision_model.post_layernorm.bias": model.norm.bias,
        "visual_projection.weight": model.projection.weight,
        "logit_scale": torch.tensor(1.0),
    }
    config = CLIPConfig(
        text_config=model.text.config.to_dict(), vision_config=vision_config.to_dict(), projection_dim=SPACE
    )
    config.vision_config.projection_dim = SPACE
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {name: value.detach().half().contiguous() for name, value in (text | vision).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

"""Fit the projector before the training: a patch becomes the sum of the embeddings of the words that name its content.

LLaVA trains its projector alone at first, on captions. Here the objects of every scene are known, so this stage is a
regression without the language model. It takes about two minutes. Without it, SmolLM2 still answered as from the
question alone after 500 steps, and with it saw digits, shapes and colours after 200.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from benchmarks.mini.data import KINDS, labels_of, pixels
from benchmarks.mini.language import Reader
from benchmarks.mini.packing import Speller
from tops_engine.mini.questions import COLOURS, ROWS, SHAPES
from tops_engine.mini.questions import COLUMNS as SIDES
from tops_engine.mini.scenes import generate

SCENES, BATCH, STEPS, RATE = 1500, 4096, 1000, 2e-3
OBJECT_WEIGHT = 4.0  # of a patch with an object against one without: these are a fifth of all patches
FIRST_SEED = 10**6  # scenes that the training does not use
#: How much the letters of a word count: less from letter to letter, so that their order is not lost.
LETTER_WEIGHTS = (1.0, 0.75, 0.5, 0.25)
CHUNK = 50

Words = tuple[tuple[str, float], ...]


def words_of(label: Sequence[int], row: int, column: int, grid: int) -> Words:
    """Return the words that name a patch's content and place, with their weights.

    Parameters
    ----------
    label : the patch's labels, columns as in ``benchmarks.mini.data.COLUMNS``.
    row, column : the patch's place in the grid.
    """
    place = tuple((name, 0.5) for name in (ROWS[row * 3 // grid], SIDES[column * 3 // grid]) if name)
    kind = KINDS[label[0]]
    if kind == "shape":
        return ((COLOURS[label[1]], 1.0), (SHAPES[label[2]], 1.0), *place)
    if kind == "digit":
        return (("digit", 1.0), (str(label[3]), 1.0), *place)
    if kind == "word":
        letters = [chr(ord("A") + one) for one in label[4:8] if one < 26]
        return (("word", 1.0), *zip(letters, LETTER_WEIGHTS, strict=False), *place)
    return (("background", 1.0),)


class Targets:
    """The embeddings that patches shall have, from the language model's token table.

    Parameters
    ----------
    table : float [vocabulary, d].
    """

    def __init__(self, table: Tensor, speller: Speller) -> None:
        self.table, self.speller = table.float(), speller
        self.mean = self.table.mean(0)
        self._known: dict[Words, Tensor] = {}

    def of(self, labels: np.ndarray, grid: int) -> Tensor:
        """Return float32 (patches, d) for the labels uint8 (patches, columns) of a picture."""
        return torch.stack(
            [self._embedding(words_of(one.tolist(), *divmod(place, grid), grid)) for place, one in enumerate(labels)]
        )

    def _embedding(self, words: Words) -> Tensor:
        if words not in self._known:
            # All embeddings have their mean in common: a sum of several would have too much of it.
            parts = [weight * (self.table[self.speller.encode(f" {word}")[-1]] - self.mean) for word, weight in words]
            self._known[words] = self.mean + torch.stack(parts).sum(0)
        return self._known[words]


def align(model: LlavaForConditionalGeneration, reader: Reader, speller: Speller, grid: int) -> float:
    """Fit the projector; return the error of the last batch, relative to the targets' variance."""
    targets = Targets(model.model.language_model.embed_tokens.weight.detach(), speller)
    features, wanted, weights = [], [], []
    for start in range(FIRST_SEED, FIRST_SEED + SCENES, CHUNK):
        scenes = [generate(seed, "train") for seed in range(start, start + CHUNK)]
        features.append(reader.features(np.stack([pixels(scene.image, grid) for scene in scenes])).flatten(0, 1))
        for scene in scenes:
            labels = labels_of(scene.objects, grid)[0]
            wanted.append(targets.of(labels, grid))
            weights.append(torch.from_numpy(np.where(labels[:, 0] > 0, OBJECT_WEIGHT, 1.0)).float())
    return _fit(model.model.multi_modal_projector, torch.cat(features).float(), torch.cat(wanted), torch.cat(weights))


def _fit(projector: torch.nn.Module, features: Tensor, wanted: Tensor, weights: Tensor) -> float:
    optimiser = torch.optim.AdamW(projector.parameters(), lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
    spread = wanted.var(0).sum()
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        chosen = torch.randint(len(features), (BATCH,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            found = projector(features[chosen])
        squares = (found.float() - wanted[chosen]).square().sum(-1)
        loss = (squares * weights[chosen]).sum() / weights[chosen].sum() / spread
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return loss.item()

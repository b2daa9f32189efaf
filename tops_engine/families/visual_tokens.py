"""Build the visual tokens of prompts, with signals that are computed when a method asks for them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from tops_engine.device.transfer import to_device
from tops_engine.families.decoder import Decoder
from tops_engine.families.parts.vision_tower import Signals
from tops_engine.families.prompt import Prompt
from tops_engine.media.layout import VisualLayout
from tops_engine.methods import ClipEmbeddings, VisualTokens
from tops_engine.methods.tokens import TowerUse

Visuals = Callable[[], list[Tensor]]
Arrange = Callable[[Tensor, Sequence[Prompt]], list[Tensor]]


class Encoder(Protocol):
    """The parts of a :class:`~tops_engine.families.base.Family` that compute signals."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def decoder(self) -> Decoder: ...

    def project_rows(self, rows: Tensor, /) -> Tensor: ...

    def arrange(self, values: Tensor, prompts: Sequence[Prompt], /) -> list[Tensor]: ...

    def arrange_features(self, rows: Tensor, prompts: Sequence[Prompt], /) -> list[Tensor]: ...

    def clip_embeddings(self, model: str | None, patches: Tensor, question: str, /) -> ClipEmbeddings: ...


def visual_tokens(
    family: Encoder, prompts: Sequence[Prompt], features: Sequence[Tensor], signals: Signals
) -> list[list[VisualTokens]]:
    """Return the visual tokens of each picture and video of each prompt.

    Parameters
    ----------
    features : [n, d] for each picture and video of all prompts, in the order of their spans.
    signals : functions that compute [tiles, rows] or [tiles, rows, c] for all prompts, by name. Each runs at most once.
    """
    arranged = {
        name: _arranged(family.arrange_features if name == "encoder_features" else family.arrange, compute, prompts)
        for name, compute in signals.items()
    }

    def visual(index: int, layout: VisualLayout, question: str) -> VisualTokens:
        lazy: dict[str, Any] = {name: partial(_item, values, index) for name, values in arranged.items()}
        return VisualTokens(
            features[index],
            layout,
            project=family.project_rows,
            **lazy,
            **question_signals(family, features[index], lazy["encoder_features"], question),
        )

    spans = [(span.layout, prompt.question) for prompt in prompts for span in prompt.spans]
    visuals = iter([visual(index, layout, question) for index, (layout, question) in enumerate(spans)])
    return [[next(visuals) for _ in prompt.spans] for prompt in prompts]


class TowerRun(Protocol):
    """A run of the vision tower that leaves something out."""

    def restore(self, values: Tensor, /) -> Tensor:
        """Bring values of the run, [tiles, rows, ...], into the form of a whole run; 0 for what was dropped."""

    def tile_numbers(self) -> Tensor:
        """Return the number of the tile of each row of a whole run, from 1: int64 [tiles, rows]."""

    def present(self, device: torch.device, /) -> Tensor | None:
        """Return 1.0 for the rows of a whole run that remain, 0.0 for others: [tiles, rows, 1]; None if all remain."""

    def uses(self, family: Any, prompts: Sequence[Prompt], /) -> list[TowerUse]:
        """Return what the tower did for each picture and video of the prompts of the run."""


def reduced_tokens(
    family: Encoder, prompts: Sequence[Prompt], features: Sequence[Tensor], signals: Signals, run: TowerRun
) -> list[list[VisualTokens]]:
    """Do what :func:`visual_tokens` does after a run of the tower that left something out."""
    restored: Signals = {name: partial(_restored, run, compute) for name, compute in signals.items()}
    restored["tiles"] = run.tile_numbers
    encoded = visual_tokens(family, prompts, features, restored)
    uses = iter(run.uses(family, prompts))
    encoded = [[replace(image, tower=next(uses)) for image in images] for images in encoded]
    present = run.present(features[0].device)
    if present is None:
        return encoded
    remaining = iter(family.arrange(present, prompts))
    return [[_without_dropped(image, next(remaining)) for image in images] for images in encoded]


def _without_dropped(image: VisualTokens, present: Tensor) -> VisualTokens:
    """Return the tokens of a picture with those that the tower dropped marked and set to 0.

    Tokens that show no patch, such as newline tokens, remain.
    """
    remains = (present > 0) | to_device(~image.layout.shows_picture[:, None], present.device)
    return replace(image, features=image.features * remains, survivors=remains[:, 0].nonzero().flatten())


def _restored(run: TowerRun, compute: Callable[[], Tensor]) -> Tensor:
    return run.restore(compute())


def question_signals(
    family: Encoder, features: Tensor, encoder_features: Callable[[], Tensor], question: str
) -> dict[str, Any]:
    """Return the signals of a picture that depend on the question, by their names in :class:`VisualTokens`."""

    def question_embeddings() -> Tensor:
        ids = family.tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return family.decoder.embed(to_device(ids, family.decoder.device))

    def question_products() -> Tensor:
        return family.decoder.first_products(question_embeddings(), features)

    def clip_embeddings(model: str | None) -> ClipEmbeddings:
        return family.clip_embeddings(model, encoder_features(), question)

    return {
        "question_embeddings": question_embeddings,
        "question_products": question_products,
        "clip_embeddings": clip_embeddings,
    }


def _arranged(arrange: Arrange, compute: Callable[[], Tensor], prompts: Sequence[Prompt]) -> Visuals:
    @functools.cache
    def visuals() -> list[Tensor]:
        values = compute()
        if values.ndim == 3:
            return arrange(values, prompts)
        return [rows[:, 0] for rows in arrange(values[..., None], prompts)]

    return visuals


def _item(visuals: Visuals, index: int) -> Tensor:
    return visuals()[index]

"""Train a model that reads its picture early: from a layer on, which changes from step to step, the picture is gone."""

from random import Random

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from benchmarks.mini.language import Reader

#: The first layer from which the picture may be gone, as a share of the layers: the first one of TOPS's second stage.
EARLIEST = 3 / 8


class EarlyReader(Reader):
    """A reader whose text no longer sees the picture from a layer on.

    Attributes
    ----------
    gone_from : the layer; None if all layers see the picture.
    """

    def __init__(self, model: LlavaForConditionalGeneration, device: torch.device) -> None:
        super().__init__(model, device)
        self.gone_from: int | None = None

    def draw(self, rng: Random) -> None:
        """Draw the layer, from :data:`EARLIEST` of the layers to after the last."""
        num_layers = len(self.model.model.language_model.layers)
        self.gone_from = rng.randint(round(EARLIEST * num_layers), num_layers)

    def hidden_states(self, embedded: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Run the language model on a collated batch: (b, n, width) -> the same."""
        if self.gone_from is None:
            return super().hidden_states(embedded, batch)
        model = self.model.model.language_model
        positions = model.rotary_emb(embedded, position_ids=batch["positions"])
        picture = batch["ids"] < 0
        # The picture still sees itself: nothing reads it, and a row must see something.
        without = batch["mask"].masked_fill(picture[:, None, None, :] & ~picture[:, None, :, None], -1e30)
        hidden = embedded
        for number, layer in enumerate(model.layers):
            mask = batch["mask"] if number < self.gone_from else without
            hidden = layer(hidden, attention_mask=mask, position_embeddings=positions)
        normed: Tensor = model.norm(hidden)
        return normed

"""Idefics3 and SmolVLM: tiles told apart by row and column tokens, the whole picture after them, no [CLS]."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import Idefics3Processor

from tops_engine.families.prompt import Prompt
from tops_engine.families.tiled import Tiled


class Idefics3(Tiled):
    """``Idefics3ForConditionalGeneration`` and ``SmolVLMForConditionalGeneration``.

    The tokens that name a tile's row and column are text and stay.
    """

    model_types = ("idefics3", "smolvlm")
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "idefics3": (
            "HuggingFaceM4/Idefics3-8B-Llama3",
            "HuggingFaceTB/SmolVLM-256M-Instruct",
            "HuggingFaceTB/SmolVLM-500M-Instruct",
            "HuggingFaceTB/SmolVLM-Instruct",
        ),
        "smolvlm": (
            "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
            "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        ),
    }
    #: SmolVLM's own writes the same prompts, but needs packages for videos.
    processor_class = Idefics3Processor

    @property
    def text_model(self) -> Any:
        return self.model.model.text_model

    @property
    def projector(self) -> torch.nn.Module:
        return self.model.model.connector.modality_projection

    @property
    def vision_layers(self) -> Sequence[Any]:
        return self.model.model.vision_model.encoder.layers

    @property
    def feature_layers(self) -> list[Any]:
        return [self.vision_layers[-1]]

    @property
    def block(self) -> int:
        return int(self.model.config.scale_factor)

    @property
    def projector_outputs(self) -> tuple[int, ...]:
        return (self.model.config.text_config.hidden_size,)

    def tile_grid(self, image: Image.Image) -> tuple[int, int]:
        _, rows, columns = self.processor.image_processor.get_number_of_image_patches(image.height, image.width)
        return rows, columns

    def tiles(self, prompt: Prompt) -> Tensor:
        return prompt.pixels["pixel_values"][0]

    def tile_features(self, pixel_values: Tensor) -> Tensor:
        features = self.model.model.get_image_features(pixel_values[None], return_dict=True).pooler_output
        # A list of [rows, d] for each sample, or (transformers 5.19 and before) [tiles, tokens, d].
        return torch.cat(list(features)).view(len(pixel_values), self.side**2, -1)

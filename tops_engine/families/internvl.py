"""InternVL3 and 3.5 in the layout of transformers: tiles and a thumbnail, four patches a token."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import InternVLProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from tops_engine.families.tiled import Tiled


class PictureProcessor(InternVLProcessor):  # type: ignore[misc]  # transformers types it as Any
    """The checkpoint's processor without its part for videos, which needs torchvision."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        image_seq_length: int = 256,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template, **kwargs)


class InternVL(Tiled):
    """``InternVLForConditionalGeneration``, over Qwen2 (InternVL3), Qwen3 (3.5) or Llama."""

    model_types = ("internvl",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "internvl": (
            *(f"OpenGVLab/InternVL3-{size}-hf" for size in ("1B", "2B", "8B", "14B", "38B", "78B")),
            *(f"OpenGVLab/InternVL3_5-{size}-HF" for size in ("1B", "2B", "4B", "8B", "14B", "38B")),
        )
    }
    processor_class = PictureProcessor

    @property
    def projector(self) -> torch.nn.Module:
        return self.model.model.multi_modal_projector

    @property
    def vision_layers(self) -> Sequence[Any]:
        return self.model.model.vision_tower.encoder.layer

    def attention_of(self, layer: Any) -> Any:
        return layer.attention

    def projections(self, attention: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
        # Behind the projections, and there (as identities) where the tower does not normalise.
        return attention.q_norm, attention.k_norm

    @property
    def has_cls(self) -> bool:
        return True

    @property
    def block(self) -> int:
        return round(1 / self.model.config.downsample_ratio)

    @property
    def projector_outputs(self) -> tuple[int, ...]:
        return (self.model.config.text_config.hidden_size,) * 2

    def tile_grid(self, image: Image.Image) -> tuple[int, int]:
        processor = self.processor.image_processor
        size = (processor.size["height"], processor.size["width"])
        columns, rows = get_optimal_tiled_canvas(
            (image.height, image.width), size, processor.min_patches, processor.max_patches
        )
        return (rows, columns) if rows * columns > 1 else (0, 0)

    def tile_features(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.model.model.get_image_features(pixel_values, return_dict=True).pooler_output
        return features

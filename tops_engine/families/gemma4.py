"""Gemma 4: pooled patches, global layers with heads of their own size, inputs by layer, shared keys and values."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers.video_processing_utils import BaseVideoProcessor

from tops_engine.device.transfer import to_device
from tops_engine.errors import InvalidImage, MissingDependency
from tops_engine.families.base import Family
from tops_engine.families.decoder import SLIDING, Decoder, Rope
from tops_engine.families.parts.gemma4_shape import Gemma4Shape
from tops_engine.families.parts.pooled_tower import PooledTower, PooledVisionShape, token_grids
from tops_engine.families.prompt import Prompt, split_rows
from tops_engine.grounding.formats import GEMMA, Format
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.media.videos import Video

#: What transformers' ``Gemma4VideoProcessor`` takes if the checkpoint's config does not say.
FRAME_TOKENS = 70

#: The most visual tokens of a picture: the processor takes one of these numbers and scales every picture to it.
TOKEN_COUNTS = (70, 140, 280, 560, 1120)


class Gemma4Decoder(Decoder):
    """Sliding and global layers have rotary embeddings of their own.

    In sliding layers of the larger sizes the tokens of a picture see each other both ways; global layers are causal.
    The last layers of the smaller sizes read keys and values of earlier layers: each sees those of the tokens that
    remain in it. A layer's own input of a token stays with the token if it is kept.

    Attributes
    ----------
    placeholders : ids of the tokens that stand for pictures, videos and sound. Where the model writes one, it is read
        as padding, as transformers reads it.
    """

    shape_class = Gemma4Shape
    shape: Gemma4Shape
    placeholders: tuple[int, ...] = ()

    def attends_both_ways(self, layer_type: str) -> bool:
        return layer_type == SLIDING and self.text_model.config.use_bidirectional_attention == "vision"

    @property
    def layers_stand_alone(self) -> bool:
        # Before transformers 5.23, layers store keys and values for others even if none reads them.
        stores = any(getattr(layer.self_attn, "store_full_length_kv", False) for layer in self.text_model.layers)
        return super().layers_stand_alone and not stores and not self.shape.per_layer_size

    def source_layer(self, layer: int) -> int:
        return self.shape.sources[layer]

    def embed(self, input_ids: Tensor) -> Tensor:
        return super().embed(self._without_placeholders(input_ids))

    def per_layer_inputs(self, input_ids: Tensor, embedded: Tensor) -> Tensor | None:
        if not self.shape.per_layer_size:
            return None
        model = self.text_model
        inputs: Tensor = model.project_per_layer_inputs(
            embedded, model.get_per_layer_inputs(self._without_placeholders(input_ids))
        )
        return inputs

    def rope(self, hidden_states: Tensor, position_ids: Tensor, layer_type: str) -> Rope:
        return self.text_model.rotary_emb(hidden_states, position_ids.view(-1, position_ids.shape[-1]), layer_type)

    def run_layer(
        self,
        layer: int,
        hidden_states: Tensor,
        rope: Rope,
        mask: Tensor | None,
        cache: Any,
        per_layer_inputs: Tensor | None = None,
    ) -> Tensor:
        shared = {}
        if self.source_layer(layer) != layer:
            shared[self.layer_types[layer]] = cache.read(layer)
        return self.text_model.layers[layer](
            hidden_states,
            None if per_layer_inputs is None else per_layer_inputs[..., layer, :],
            # Layers that share their keys and values write them here. They are not read: the cache has them.
            shared_kv_states=shared,
            position_embeddings=rope,
            attention_mask=mask,
            **{self.cache_argument: cache},
        )

    def logits(self, hidden_states: Tensor) -> Tensor:
        scores = self.lm_head(self.final_norm(hidden_states))
        cap = self.text_model.config.final_logit_softcapping
        return (scores if cap is None else (scores / cap).tanh() * cap).float()

    def _without_placeholders(self, input_ids: Tensor) -> Tensor:
        for placeholder in (*self.placeholders, -1):
            input_ids = input_ids.masked_fill(input_ids == placeholder, self.text_model.config.pad_token_id)
        return input_ids

    def _rotated(self, projected: Tensor, norm: nn.Module | None, rope: Rope) -> Tensor:
        cos, sin, *_ = rope
        heads = projected.view(1, projected.shape[0], -1, cos.shape[-1])
        heads = (norm(heads) if norm is not None else heads).transpose(1, 2)
        rotated: Tensor = self._apply_rotary(heads, cos[None], sin[None])[0]
        return rotated


class Gemma4(Family):
    """``Gemma4ForConditionalGeneration``: google/gemma-4-E2B-it, -E4B-it, -26B-A4B-it and -31B-it.

    A token is the mean of 3 x 3 patches. The tower has no [CLS]: relevance is the mean attention that a token's patches
    receive in its last layer. Each frame of a video is a picture behind the time that it shows.
    """

    model_types = ("gemma4",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "gemma4": tuple(f"google/gemma-4-{size}-it" for size in ("E2B", "E4B", "26B-A4B", "31B"))
    }
    takes_videos = True
    grounding: ClassVar[dict[str, Format]] = {"gemma4": GEMMA}
    decoder_class = Gemma4Decoder
    decoder: Gemma4Decoder
    tower: PooledTower

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        config = model.config
        self.decoder.placeholders = (config.image_token_id, config.video_token_id, config.audio_token_id)
        self.vision_shape = PooledVisionShape.from_config(self.visual.config, config.text_config.hidden_size)

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        # Not at the top: with transformers 5.17 this module needs torchvision, which the other families do without.
        try:
            from tops_engine.families.parts.gemma4_processor import PictureProcessor
        except ImportError as error:
            raise MissingDependency(
                "Gemma 4 needs torchvision with this version of transformers: pip install torchvision, or install "
                "transformers 5.23 or newer, which does without."
            ) from error

        processor = PictureProcessor.from_pretrained(source, revision=revision, trust_remote_code=False)
        settings, _ = BaseVideoProcessor.get_video_processor_dict(source, revision=revision or "main")
        processor.frame_tokens = settings.get("max_soft_tokens", FRAME_TOKENS)
        return processor

    def pixel_settings(self, least: int | None, most: int | None) -> dict[str, Any]:
        # Every picture is scaled to about as many pixels as the most tokens show.
        own, token = self.processor.image_processor.max_soft_tokens, self._token_side**2
        fitting = [count for count in TOKEN_COUNTS if most is None or count * token <= most] or TOKEN_COUNTS[:1]
        wanted = [count for count in fitting if count >= max(own, (least or 0) / token)]
        return {"max_soft_tokens": wanted[0] if wanted else fitting[-1]}

    def pixel_counts(self) -> list[int]:
        most = self.processor.image_processor.max_soft_tokens
        return [count * self._token_side**2 for count in TOKEN_COUNTS if count <= most]

    def picture_tokens(self, width: int, height: int, alone: bool = True) -> int:
        sides: tuple[int, int] = self.processor.scaled_sides(height, width)
        return math.prod(side // self._token_side for side in sides)

    @property
    def _token_side(self) -> int:
        """Pixels along a side of the block that becomes a token."""
        image_processor = self.processor.image_processor
        return int(image_processor.patch_size * image_processor.pooling_kernel_size)

    @property
    def visual(self) -> Any:
        """The vision tower's module."""
        return self.model.model.vision_tower

    @property
    def projector(self) -> nn.Module:
        # The first part of the projector behind the pooling: it gets one row for each visual token.
        return self.model.model.embed_vision.embedding_pre_projection_norm

    def project_rows(self, rows: Tensor) -> Tensor:
        return self.model.model.embed_vision(rows)

    def build_tower(self) -> PooledTower:
        return PooledTower(self.visual, self.projector)

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        if not images:
            return []
        self._check_length(pixels["image_position_ids"], images)
        grids = token_grids(pixels["image_position_ids"], self.tower.block)
        return [VisualLayout(grid_boxes(*grid), torch.zeros(grid[0] * grid[1]).long(), (grid,)) for grid in grids]

    def _check_length(self, positions: Tensor, pictures: Sequence[Image.Image]) -> None:
        """Refuse pictures with more patches in a row than the tower has positions; ``positions`` [pictures, n, 2]."""
        longest = self.visual.config.position_embedding_size
        for picture, last in zip(pictures, positions.amax(dim=(1, 2)).tolist(), strict=True):
            if last >= longest:
                raise InvalidImage(
                    f"A picture of {picture.width} x {picture.height} pixels is too narrow for this model: it would "
                    f"have {last + 1} patches in a row, and the most are {longest}; crop it, or lower min_pixels."
                )

    def read_videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        frames = [frame for video in videos for frame in video.frames]
        made = self.processor.image_processor(
            images=frames, max_soft_tokens=self.processor.frame_tokens, return_tensors="pt"
        )
        return {
            "pixel_values_videos": made["pixel_values"],
            "video_position_ids": made["image_position_ids"],
            "num_frames_per_video": torch.tensor([len(video.frames) for video in videos]),
        }

    def video_layouts(self, videos: Sequence[Video], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        self._check_length(pixels["video_position_ids"], [frame for video in videos for frame in video.frames])
        first_frames = pixels["num_frames_per_video"].cumsum(0) - pixels["num_frames_per_video"]
        grids = token_grids(pixels["video_position_ids"][first_frames], self.tower.block)
        return [
            frame_layout(len(video.frames), grid_boxes(*grid), grid) for video, grid in zip(videos, grids, strict=True)
        ]

    def video_text(self, video: Video, layout: VisualLayout) -> str:
        """Return the tokens of each frame behind its time in minutes and seconds."""
        rows, columns = layout.grids[0]
        tokens = f"{self.processor.boi_token}{str(self.video_token) * rows * columns}{self.processor.eoi_token}"
        return " ".join(f"{int(time // 60):02d}:{int(time % 60):02d} {tokens}" for time in video.timestamps)

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        patches, positions = _padded([pixels for prompt in prompts for pixels in _pictures(prompt)])
        device, dtype = self.decoder.device, self.decoder.dtype
        features = self.model.model.get_image_features(
            to_device(patches, device, dtype), to_device(positions, device), return_dict=True
        )
        return split_rows(torch.cat(features.pooler_output), prompts)

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return split_rows(values[0], prompts)

    def vision_flops(self, prompt: Prompt) -> int:
        if not prompt.spans:
            return 0
        patches, _ = _padded(_pictures(prompt))
        num_tokens = sum(span.layout.num_tokens for span in prompt.spans)
        return self.vision_shape.flops(len(patches), patches.shape[1], num_tokens)


def _pictures(prompt: Prompt) -> list[tuple[Tensor, Tensor]]:
    """Return patches [pictures or frames, n, values] and their positions of each span."""
    pixels = prompt.pixels
    lengths = pixels["num_frames_per_video"].tolist() if prompt.videos else []
    images, videos = (
        zip(torch.split(pixels[patches], sizes), torch.split(pixels[positions], sizes), strict=True)
        if sizes
        else iter(())
        for patches, positions, sizes in (
            ("pixel_values", "image_position_ids", [1] * len(prompt.images)),
            ("pixel_values_videos", "video_position_ids", lengths),
        )
    )
    return [next(images if span.layout.frame is None else videos) for span in prompt.spans]


def _padded(pictures: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join pictures and frames; the frames of videos have fewer patches and are padded as the processor pads."""
    longest = max(patches.shape[1] for patches, _ in pictures)
    patches = [F.pad(values, (0, 0, 0, longest - values.shape[1])) for values, _ in pictures]
    positions = [F.pad(places, (0, 0, 0, longest - places.shape[1]), value=-1) for _, places in pictures]
    return torch.cat(patches), torch.cat(positions)

"""GLM-4.1V to 4.6V: pictures and videos in their own resolution, a token for 2 x 2 patches, positions in 3-D."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Glm4vProcessor

from tops_engine.conversation.messages import Conversation
from tops_engine.device.transfer import to_device
from tops_engine.families.decoder import Decoder
from tops_engine.families.parts.glm_tower import GlmTower
from tops_engine.families.parts.packed_frames import bounds_of_a_frame, video_bounds
from tops_engine.families.parts.processors import without_video
from tops_engine.families.prompt import Prompt
from tops_engine.families.qwen2_vl import Qwen2VL
from tops_engine.flops import DecoderShape
from tops_engine.grounding.formats import GLM, Format
from tops_engine.media.bounds import Bounds
from tops_engine.media.layout import VisualLayout
from tops_engine.media.videos import Video
from tops_engine.tower import Dedup

#: What transformers' ``Glm4vVideoProcessor`` takes if the checkpoint's config does not say: pixels of all frames.
VIDEO_BOUNDS = Bounds(112 * 112, 28 * 28 * 2 * 30000)


class GlmShape(DecoderShape):
    """Sizes of a decoder whose first layers are dense, and whose others have experts, some of them shared."""

    @classmethod
    def from_config(cls, config: Any) -> "GlmShape":
        shape = vars(DecoderShape.from_config(config))
        num_experts = getattr(config, "n_routed_experts", 0)
        if not num_experts:
            return cls(**shape)
        passed = config.moe_intermediate_size * (config.num_experts_per_tok + config.n_shared_experts)
        dense = frozenset(range(config.first_k_dense_replace))
        return cls(**shape | {"intermediate_size": passed, "router_size": num_experts, "dense_layers": dense})


class GlmDecoder(Decoder):
    """Layers of the Llama kind; of the mixture-of-experts sizes the first ones are dense."""

    shape_class = GlmShape


class Glm4V(Qwen2VL):
    """``Glm4vForConditionalGeneration`` and ``Glm4vMoeForConditionalGeneration``: zai-org/GLM-4.1V-9B-Thinking,
    GLM-4.5V, GLM-4.6V; also ``Glm46VForConditionalGeneration``, which has the parts of either.

    Relevance is the mean attention that a token's patches receive in the tower's last layer. Two frames of a video make
    a token, and their time stands behind them in the text.
    """

    model_types = ("glm4v", "glm4v_moe")
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "glm4v": ("zai-org/GLM-4.1V-9B-Thinking", "zai-org/GLM-4.6V-Flash"),
        "glm4v_moe": ("zai-org/GLM-4.5V", "zai-org/GLM-4.6V"),
    }
    processor_class = without_video(Glm4vProcessor)
    grounding: ClassVar[dict[str, Format]] = dict.fromkeys((*model_types, "glm46v"), GLM)
    decoder_class = GlmDecoder
    dedups: ClassVar[tuple[Dedup, ...]] = ("exact",)
    uncut_because: ClassVar[str | None] = "behind which a convolution reads each block of patches"
    tower: GlmTower

    @classmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        return super().matches(config) or config.get("model_type") == "glm46v"

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        processor.video_bounds = video_bounds(source, revision, VIDEO_BOUNDS)
        # GLM-4.6V is published with the model classes of 4.1V and 4.5V, but with a processor of its own.
        processor.tells_tenths = type(processor.image_processor).__name__.startswith("Glm46V")
        return processor

    def pixel_settings(self, least: int | None, most: int | None) -> dict[str, Any]:
        # This processor counts the pixels of a picture for each of the frames that a patch spans.
        image_processor = self.processor.image_processor
        frames, size = image_processor.temporal_patch_size, image_processor.size
        own = Bounds(size["shortest_edge"] // frames, size["longest_edge"] // frames).within(least, most)
        return {"size": {"shortest_edge": own.least * frames, "longest_edge": own.most * frames}}

    def build_tower(self) -> GlmTower:
        return GlmTower(self.visual)

    def prepare(self, conversation: Conversation) -> Prompt:
        prompt = super().prepare(conversation)
        config = self.model.config
        # The model has one token for pictures and frames.
        input_ids = prompt.input_ids.masked_fill(prompt.input_ids == config.video_token_id, config.image_token_id)
        return replace(prompt, input_ids=input_ids)

    def position_ids(self, input_ids: Tensor, pixels: dict[str, Tensor]) -> Tensor:
        # The processor does not know the frames, whose placeholders were expanded before.
        config = self.model.config
        kinds = (input_ids == config.image_token_id).long() + 2 * (input_ids == config.video_token_id).long()
        pixels["mm_token_type_ids"] = kinds[None]
        return super().position_ids(input_ids, pixels)

    def frame_bounds(self, video: Video) -> Bounds:
        # The checkpoint's bounds are those of all frames together, and the image processor counts those of a patch.
        num_patches = math.ceil(len(video.frames) / self.visual.config.temporal_patch_size)
        return bounds_of_a_frame(self.processor.video_bounds, num_patches, 1)

    def video_text(self, video: Video, layout: VisualLayout) -> str:
        """Return the tokens of each two frames and, behind them, the time of the first."""
        rows, columns = layout.grids[0]
        tokens = f"<|begin_of_image|>{str(self.video_token) * rows * columns}<|end_of_image|>"
        times = video.timestamps[:: self.visual.config.temporal_patch_size]
        written = (f"{time:.1f} seconds" if self.processor.tells_tenths else str(int(time)) for time in times)
        return "".join(tokens + time for time in written)

    def features(self, pixel_values: Tensor, grids: Tensor) -> list[Tensor]:
        # The tower takes each frame as a picture.
        frames = grids.repeat_interleave(grids[:, 0], dim=0)
        frames[:, 0] = 1
        features = self.model.model.get_image_features(
            pixel_values, to_device(frames, pixel_values.device), return_dict=True, **self.tower.inputs(frames)
        )
        counts = grids.prod(dim=1) // self.tower.shape.patches_per_token
        return list(torch.split(torch.cat(features.pooler_output), counts.tolist()))

    def project_rows(self, rows: Tensor) -> Tensor:
        return self.visual.merger(rows)

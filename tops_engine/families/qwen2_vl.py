"""Qwen2-VL and Qwen2.5-VL: pictures and videos in their own resolution, a token for 2 x 2 patches, positions in 3-D."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLProcessor
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from tops_engine.device.transfer import to_device
from tops_engine.families.base import Family
from tops_engine.families.parts.processors import without_video
from tops_engine.families.parts.qwen_video import Bounds, pack_frames, video_bounds
from tops_engine.families.parts.vision_signals import Call, patch_attention
from tops_engine.families.prompt import Prompt
from tops_engine.flops import PackedVisionShape
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.media.videos import Video

# Of a frame of a video, where the checkpoint does not say: what the family's authors take.
LEAST_FRAME_TOKENS, MOST_FRAME_TOKENS = 128, 768


class Qwen2VL(Family):
    """``Qwen2VLForConditionalGeneration`` and ``Qwen2_5_VLForConditionalGeneration``: Qwen/Qwen2-VL-7B-Instruct,
    Qwen/Qwen2.5-VL-7B-Instruct and the other sizes.

    The vision tower has no [CLS]: relevance is the mean attention a patch receives in the last layer where it is seen
    by its whole picture or frame, which also stands for the tower's last one. What is known of patches (attention,
    keys) is averaged over those of a token; its encoder features are those of its patches, one after the other.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "qwen2_vl": tuple(f"Qwen/Qwen2-VL-{size}-Instruct" for size in ("2B", "7B", "72B")),
        "qwen2_5_vl": tuple(f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B")),
    }
    processor_class = without_video(Qwen2VLProcessor)
    takes_videos = True
    position_axes = 3

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.visual = model.model.visual
        self.vision_shape = PackedVisionShape.from_config(self.visual.config)

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        token = (processor.image_processor.patch_size * processor.image_processor.merge_size) ** 2
        default = Bounds(LEAST_FRAME_TOKENS * token, MOST_FRAME_TOKENS * token)
        processor.video_bounds = video_bounds(source, revision, default)
        return processor

    @property
    def projector(self) -> torch.nn.Module:
        return self.visual.merger

    @property
    def feature_attention(self) -> Any:
        full = getattr(self.visual.config, "fullatt_block_indexes", None)
        return self.visual.blocks[max(full) if full else -1].attn

    def read_videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        image_processor = self.processor.image_processor
        packed = [pack_frames(video.frames, image_processor, self.frame_bounds(video)) for video in videos]
        pixels = {
            "pixel_values_videos": torch.cat([patches for patches, _ in packed]),
            "video_grid_thw": torch.tensor([grid for _, grid in packed]),
        }
        if hasattr(self.visual.config, "tokens_per_second"):
            seconds = [image_processor.temporal_patch_size / video.fps for video in videos]
            pixels["second_per_grid_ts"] = torch.tensor(seconds)
        return pixels

    def frame_bounds(self, video: Video) -> Bounds:
        """How many pixels a frame is scaled to."""
        return self.processor.video_bounds

    def position_ids(self, input_ids: Tensor, pixels: dict[str, Tensor]) -> Tensor:
        if "image_grid_thw" not in pixels and "video_grid_thw" not in pixels:
            return super().position_ids(input_ids, pixels)
        inputs = {name: value for name, value in pixels.items() if not name.startswith("pixel_values")}
        positions, _ = self.model.model.get_rope_index(input_ids[None], **inputs)
        return positions[:, 0]

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        grids = self._token_grids(pixels["image_grid_thw"]) if images else []
        return [
            VisualLayout(grid_boxes(*grid), torch.zeros(grid[0] * grid[1], dtype=torch.int64), (grid,))
            for _, grid in grids
        ]

    def video_layouts(self, videos: Sequence[Video], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        grids = self._token_grids(pixels["video_grid_thw"])
        step = self.visual.config.temporal_patch_size
        return [frame_layout(times, grid_boxes(*grid), grid, step) for times, grid in grids]

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        patches, grids = zip(*(visual for prompt in prompts for visual in _visuals(prompt)), strict=True)
        pixel_values = to_device(torch.cat(patches), self.visual.device, self.visual.dtype)
        # A picture is a video of one moment to the tower, and all of them go through it at once. The grids stay on the
        # host: what the tower makes of them there would make it wait for a GPU.
        on_host = torch.stack(grids)
        features = self.model.model.get_image_features(
            pixel_values, on_host, return_dict=True, **self.tower_inputs(on_host)
        )
        return list(features.pooler_output)

    def tower_inputs(self, grids: Tensor) -> dict[str, Any]:
        """What the tower would compute of the grids itself, int64 [n, 3] on the CPU: where patches and windows lie."""
        config, device = self.visual.config, self.visual.device
        inputs: dict[str, Any] = {
            "position_ids": to_device(get_vision_position_ids(grids, config.spatial_merge_size), device)
        }
        ends = {"": get_vision_cu_seqlens(grids)}
        window_order, window_ends = self._windows(grids)
        if window_order is not None:
            inputs["window_index"] = to_device(window_order, device)
            ends["window_"] = window_ends
        flash = is_flash_attention_requested(config)
        for what, values in ends.items():
            # Without flash attention the host cuts the sequences apart: at each layer, so the ends stay with it.
            inputs[f"cu_{what}seqlens"] = to_device(values, device) if flash else values
            inputs[f"max_{what}seqlen"] = int(values.diff().max()) if flash else None
        return inputs

    def project_rows(self, rows: Tensor) -> Tensor:
        return self.visual.merger(rows.view(-1, self.vision_shape.hidden_size))

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Rows are tokens here: [1, tokens, c], in the order the tower has them in."""
        grids, tokens = self._grids(prompts), values[0]
        window_order = self._windows(grids)[0]
        if window_order is not None:
            tokens = tokens[to_device(window_order.argsort(), tokens.device)]
        return list(torch.split(tokens, self._num_tokens(grids)))

    def attention_taps(self) -> Sequence[torch.nn.Module]:
        return self.feature_attention, self.feature_attention.qkv, self.projector

    def token_attention(self, taps: Sequence[Call]) -> Tensor:
        return self._attention_received(taps, self.feature_attention.num_heads)

    def signals(self, attention_taps: Sequence[Call], signal_taps: Sequence[Call]) -> dict[str, Callable[[], Tensor]]:
        layer, projected, merger = attention_taps

        def keys() -> Tensor:
            return self._mean_of_patches(projected.output.chunk(3, dim=-1)[1].float())

        def frames() -> Tensor:
            lengths = torch.tensor(_lengths(layer))
            numbers = torch.arange(1, len(lengths) + 1).repeat_interleave(lengths)
            return to_device(numbers, layer.input.device)[None, :: self.vision_shape.patches_per_token]

        return {
            "encoder_features": lambda: merger.input.reshape(1, -1, self.vision_shape.merged_size),
            "tiles": frames,
            "vision_keys": lambda: self._heads(keys()[0]).mean(dim=1)[None],
            "last_layer_attention": lambda: self._attention_received(attention_taps, num_heads=1),
            "last_layer_keys": keys,
        }

    def _attention_received(self, taps: Sequence[Call], num_heads: int) -> Tensor:
        """The mean attention the patches of each token receive from their frame: float32 [1, tokens]."""
        layer, projected, _ = taps
        queries, keys, _ = (self._heads(part) for part in projected.output.chunk(3, dim=-1))
        rotate = sys.modules[type(self.visual).__module__].apply_rotary_pos_emb_vision
        queries, keys = rotate(queries, keys, *layer.keywords["position_embeddings"])
        lengths = _lengths(layer)
        scale = (self.vision_shape.hidden_size // num_heads) ** -0.5
        frames = zip(torch.split(queries.flatten(1), lengths), torch.split(keys.flatten(1), lengths), strict=True)
        received = [patch_attention(q[None], k[None], num_heads, scale, has_cls=False)[0] for q, k in frames]
        return self._mean_of_patches(torch.cat(received)[:, None])[..., 0]

    def _heads(self, values: Tensor) -> Tensor:
        return values.view(len(values), self.feature_attention.num_heads, -1)

    def _mean_of_patches(self, values: Tensor) -> Tensor:
        """[patches, c] -> [1, tokens, c]."""
        return values.view(1, -1, self.vision_shape.patches_per_token, values.shape[-1]).mean(dim=2)

    def vision_flops(self, prompt: Prompt) -> int:
        if not prompt.spans:
            return 0
        grids = self._grids([prompt])
        frames = [rows * columns for times, rows, columns in grids.tolist() for _ in range(times)]
        return self.vision_shape.flops(frames, self._windows(grids)[1].diff().tolist())

    def _grids(self, prompts: Sequence[Prompt]) -> Tensor:
        """Times, rows and columns of patches of each picture and video, in the order of their spans: int64 [n, 3]."""
        return torch.stack([grid for prompt in prompts for _, grid in _visuals(prompt)])

    def _num_tokens(self, grids: Tensor) -> list[int]:
        counts: list[int] = (grids.prod(dim=1) // self.vision_shape.patches_per_token).tolist()
        return counts

    def _token_grids(self, grids: Tensor) -> list[tuple[int, tuple[int, int]]]:
        """Times, and (rows, columns) of tokens."""
        side = self.visual.config.spatial_merge_size
        return [(times, (rows // side, columns // side)) for times, rows, columns in grids.tolist()]

    def _windows(self, grids: Tensor) -> tuple[Tensor | None, Tensor]:
        """The order in which the tower's windows hold the tokens (None: their own), and where each window begins and
        the last one ends, in patches."""
        config = self.visual.config
        if not hasattr(config, "window_size"):
            return None, torch.zeros(1, dtype=torch.int64)
        return get_vision_window_index(
            grids,
            spatial_merge_size=config.spatial_merge_size,
            window_size=config.window_size,
            patch_size=config.patch_size,
        )


def _lengths(layer: Call) -> list[int]:
    """How many patches each frame has that an attention layer of the tower saw."""
    ends = layer.keywords["cu_seqlens"]
    return [len(layer.input)] if len(ends) == 2 else ends.diff().tolist()


def _visuals(prompt: Prompt) -> list[tuple[Tensor, Tensor]]:
    """Patches [p, values] and grid [3] of each picture and video, in the order of the spans."""
    pixels = prompt.pixels
    images, videos = (
        zip(torch.split(pixels[values], pixels[grids].prod(dim=1).tolist()), pixels[grids], strict=True)
        if grids in pixels
        else iter(())
        for values, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw"))
    )
    return [next(images if span.layout.frame is None else videos) for span in prompt.spans]

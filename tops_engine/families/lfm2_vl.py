"""LFM2-VL: SigLIP 2 on tiles and a thumbnail, a token for 2 x 2 patches, short convolutions between attention."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from tops_engine.device.transfer import to_device
from tops_engine.families.base import Family
from tops_engine.families.decoder import RECURRENT, Decoder, Rope
from tops_engine.families.parts.lfm2_processor import Lfm2Processor
from tops_engine.families.parts.naflex_tower import NaflexTower
from tops_engine.families.parts.tile_grid import tiled_layout
from tops_engine.families.prompt import Prompt, split_rows
from tops_engine.flops import DecoderShape
from tops_engine.grounding.formats import LFM2, Format
from tops_engine.media.layout import VisualLayout


@dataclass(frozen=True)
class ConvolutionShape(DecoderShape):
    """Sizes of a stack in which some layers have a gated short convolution in the place of attention."""

    layer_types: tuple[str, ...] = ()
    kernel_size: int = 0

    @classmethod
    def from_config(cls, config: Any) -> "ConvolutionShape":
        plain = DecoderShape.from_config(config)
        sizes = vars(plain) | {"intermediate_size": _feed_forward_size(config)}
        return cls(**sizes, layer_types=tuple(config.layer_types), kernel_size=config.conv_L_cache)

    def layer_flops(self, layer: int, num_queries: int, num_keys: int) -> int:
        if self.layer_types[layer] not in RECURRENT:
            return super().layer_flops(layer, num_queries, num_keys)
        projections = 2 * num_queries * self.hidden_size * 4 * self.hidden_size
        convolution = 2 * num_queries * self.hidden_size * self.kernel_size
        return projections + convolution + self.feed_forward_flops(layer, num_queries)

    def kv_cache_bytes(self, tokens_per_layer: Sequence[int], num_new_tokens: int, bytes_per_value: int) -> int:
        """Return the bytes of the attention layers' keys and values and of the convolutions' states."""
        kinds = [layer_type in RECURRENT for layer_type in self.layer_types]
        slots = sum(
            tokens + num_new_tokens for tokens, is_conv in zip(tokens_per_layer, kinds, strict=True) if not is_conv
        )
        states = sum(kinds) * self.hidden_size * self.kernel_size
        return (2 * slots * self.num_kv_heads * self.head_dim + states) * bytes_per_value


def _feed_forward_size(config: Any) -> int:
    if not config.block_auto_adjust_ff_dim:
        return int(config.intermediate_size)
    size = int(2 * config.intermediate_size / 3)
    if config.block_ffn_dim_multiplier is None:
        return size
    multiple = config.block_multiple_of
    return int(multiple * -(-int(config.block_ffn_dim_multiplier * size) // multiple))


class ConvolutionDecoder(Decoder):
    """Layers with a short convolution keep its last inputs, which a prefix cannot be cut from."""

    shape_class = ConvolutionShape

    @property
    def dtype(self) -> torch.dtype:
        return self.text_model.embedding_norm.weight.dtype

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        return self.text_model.embedding_norm(hidden_states)

    def queries(self, layer: int, hidden_states: Tensor, rope: Rope) -> Tensor:
        block = self.text_model.layers[layer]
        projected = block.self_attn.q_proj(block.operator_norm(hidden_states))
        return self._rotated(projected, block.self_attn.q_layernorm, rope)

    def keys(self, layer: int, hidden_states: Tensor, rope: Rope) -> Tensor:
        block = self.text_model.layers[layer]
        projected = block.self_attn.k_proj(block.operator_norm(hidden_states))
        return self._rotated(projected, block.self_attn.k_layernorm, rope)


class Lfm2VL(Family):
    """``Lfm2VlForConditionalGeneration``: LiquidAI/LFM2-VL-1.6B and the other sizes.

    The tokens that name a tile's row and column are text and are not pruned. A convolution reads the tokens that remain
    in its layer, one after the other, so a kept token may follow one that stood further away.
    """

    model_types = ("lfm2_vl",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "lfm2_vl": tuple(f"LiquidAI/LFM2-VL-{size}" for size in ("450M", "1.6B", "3B"))
    }
    vision_model_types = ("siglip2_vision_model",)
    grounding: ClassVar[dict[str, Format]] = {"lfm2_vl": LFM2}
    decoder_class = ConvolutionDecoder
    tower: NaflexTower

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        return Lfm2Processor.load(source, revision)

    def build_tower(self) -> NaflexTower:
        pictures = self.processor.image_processor
        return NaflexTower(self.model.model.vision_tower, self.model.config.downsample_factor, pictures.max_patches)

    @property
    def _projector(self) -> Any:
        return self.model.model.multi_modal_projector

    @property
    def projector(self) -> nn.Module:
        # The first layer that sees the patches of a token, side by side.
        return self._projector.layer_norm if self._projector.use_layer_norm else self._projector.linear_1

    def project_rows(self, rows: Tensor) -> Tensor:
        projector = self._projector
        rows = projector.layer_norm(rows) if projector.use_layer_norm else rows
        return projector.linear_2(projector.act(projector.linear_1(rows)))

    @property
    def placeholders(self) -> set[str]:
        processor = self.processor
        names = {processor.image_start_token, processor.image_end_token, processor.image_thumbnail_token}
        return super().placeholders | names

    def picture_tokens(self, width: int, height: int, alone: bool = True) -> int:
        processor = self.processor.image_processor
        plan = processor.plan(height, width)
        tiles = plan.rows * plan.columns * processor.tile_side**2 if plan.is_cut else 0
        return int(tiles + plan.height * plan.width)

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        processor = self.processor.image_processor
        layouts = []
        for image in images:
            plan = processor.plan(image.height, image.width)
            rows, columns = (plan.rows, plan.columns) if plan.is_cut else (0, 0)
            layouts.append(tiled_layout(rows, columns, processor.tile_side, (plan.height, plan.width)))
        return layouts

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        pixels, masks, shapes = (
            torch.cat([prompt.pixels[name] for prompt in prompts if prompt.spans]) for name in names
        )
        output = self.tower.tower(
            to_device(pixels, self.decoder.device, self.decoder.dtype),
            pixel_attention_mask=to_device(masks, self.decoder.device),
            # On the host, where the tower reads each size.
            spatial_shapes=shapes,
        )
        tiles = [
            self._projector.pixel_unshuffle(rows[: height * width].view(1, height, width, -1)).flatten(0, 2)
            for rows, (height, width) in zip(output.last_hidden_state, shapes.tolist(), strict=True)
        ]
        return split_rows(self.project_rows(torch.cat(tiles)), prompts)

    def signals(self, projector: Any, taps: Sequence[Any]) -> Any:
        return super().signals(replace(projector, input=projector.input[None]), taps)

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return split_rows(values[0], prompts)

    def vision_flops(self, prompt: Prompt) -> int:
        if not prompt.spans:
            return 0
        config, projector = self.model.config, self._projector
        widths = (projector.linear_1.in_features, projector.linear_1.out_features, config.text_config.hidden_size)
        num_tokens = sum(span.layout.num_tokens for span in prompt.spans)
        projected = num_tokens * sum(2 * a * b for a, b in itertools.pairwise(widths))
        return self.tower.shape.flops(len(prompt.pixels["pixel_values"])) + projected

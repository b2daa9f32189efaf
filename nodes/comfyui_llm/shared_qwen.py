"""The engine's families of Qwen on ComfyUI's modules, and what their checkpoints have beside the weights."""

from typing import Any, ClassVar

import torch

from tops_engine.families.qwen3_5 import Qwen35
from tops_engine.families.qwen3_vl import Qwen3VL

#: The processor of Qwen/Qwen3-VL-4B-Instruct and -8B-Instruct, and of Qwen/Qwen3.5.
PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}

#: The turns of a conversation as Qwen's models read them, up to what stands before the answer.
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
ANSWER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
#: Qwen3.5 reasons before it answers, or reads an empty reasoning.
THINKING_ANSWER = (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)

TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
)
LINEAR_SIZES = (
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
)


class ComfyUIWeights:
    """A family whose weights are in ComfyUI's modules, which ComfyUI moves."""

    def to(self, device: torch.device) -> None:
        """Leave the weights to ComfyUI."""

    @property
    def weight_bytes(self) -> int:
        """0: none are the family's own."""
        return 0


class SharedQwen3VL(ComfyUIWeights, Qwen3VL, register=False):
    """Qwen3-VL on ComfyUI's modules."""

    model_type: ClassVar[str] = "qwen3_vl"
    template: ClassVar[str] = TURNS + ANSWER

    @staticmethod
    def config(transformer: Any) -> dict[str, Any]:
        """Return the config of ComfyUI's model, as transformers has it, without the ids of tokens."""
        text = transformer.model.config
        rope = {"mrope_section": list(text.rope_dims)}
        deepstack = {"deepstack_visual_indexes": list(transformer.visual.deepstack_visual_indexes)}
        return {"text_config": _text(text, rope), "vision_config": _vision(transformer) | deepstack}


class SharedQwen35(ComfyUIWeights, Qwen35, register=False):
    """Qwen3.5 on ComfyUI's modules."""

    model_type: ClassVar[str] = "qwen3_5"
    template: ClassVar[str] = TURNS + THINKING_ANSWER

    @staticmethod
    def config(transformer: Any) -> dict[str, Any]:
        """Return the config of ComfyUI's model, as transformers has it, without the ids of tokens."""
        text = transformer.model.config
        rope = {"mrope_section": list(text.mrope_section), "partial_rotary_factor": text.partial_rotary_factor}
        linear = {name: getattr(text, name) for name in LINEAR_SIZES}
        linear["linear_conv_kernel_dim"] = text.conv_kernel_size
        layer_types = [layer.layer_type for layer in transformer.model.layers]
        return {
            "text_config": _text(text, rope) | linear | {"layer_types": layer_types},
            "vision_config": _vision(transformer),
        }


#: The families by the name of the architecture in ComfyUI.
FAMILIES: dict[str, type[SharedQwen3VL] | type[SharedQwen35]] = {"Qwen3VL": SharedQwen3VL, "Qwen35": SharedQwen35}


def _text(text: Any, rope: dict[str, Any]) -> dict[str, Any]:
    default = {"rope_type": "default", "rope_theta": text.rope_theta, "mrope_interleaved": True}
    return {name: getattr(text, name) for name in TEXT_SIZES} | {"rope_parameters": default | rope}


def _vision(transformer: Any) -> dict[str, Any]:
    visual = transformer.visual
    block = visual.blocks[0]
    return {
        "depth": len(visual.blocks),
        "hidden_size": visual.hidden_size,
        "intermediate_size": block.mlp.linear_fc1.out_features,
        "num_heads": block.attn.num_heads,
        "patch_size": visual.patch_size,
        "spatial_merge_size": visual.spatial_merge_size,
        "num_position_embeddings": visual.num_position_embeddings,
        "out_hidden_size": transformer.model.config.hidden_size,
    }

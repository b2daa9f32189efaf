"""What the savings of published models need beside the layouts in ``tests/support/layouts``.

Written from general knowledge of the published files, not copied from them. A family whose image processor has the
defaults of its class in transformers, and which has a layout, needs no entry here.
"""

from typing import Any

from benchmarks.published_sizes import (
    CLIP_PREPROCESSOR,
    LLAMA3_8B,
    LLAVA_PROCESSOR,
    NEXT_PINPOINTS,
    ONEVISION_PINPOINTS,
)

Json = dict[str, Any]

PIXTRAL: Json = {
    "preprocessor_config": {"patch_size": 14, "size": {"longest_edge": 1540}},
    "processor_config": {"patch_size": 14, "spatial_merge_size": 2},
}
CLIP_TILES: Json = CLIP_PREPROCESSOR | {"image_grid_pinpoints": NEXT_PINPOINTS, "do_pad": True}
QWEN3: Json = {"patch_size": 16, "size": {"longest_edge": 16777216, "shortest_edge": 65536}}


def _tiles(side: int, tokens: int, most: int) -> Json:
    """Return the processor of Idefics3 and SmolVLM."""
    sizes = {"size": {"longest_edge": most * side}, "max_image_size": {"longest_edge": side}}
    return {"preprocessor_config": sizes, "processor_config": {"image_seq_len": tokens}}


#: What differs from the defaults in the files of the processor, by model type, or by checkpoint.
PROCESSORS: dict[str, dict[str, Json]] = {
    "fancyfeast/llama-joycaption-beta-one-hf-llava": {
        "processor_config": LLAVA_PROCESSOR
        | {
            "vision_feature_select_strategy": "full",
            "num_additional_image_tokens": 0,
            "image_processor": {"size": {"height": 384, "width": 384}, "image_processor_type": "SiglipImageProcessor"},
        }
    },
    "aya_vision": {
        "preprocessor_config": {"size": {"height": 364, "width": 364}, "min_patches": 1, "max_patches": 12},
        "processor_config": {"img_size": 364, "patch_size": 14, "downsample_factor": 2},
    },
    "gemma3": {"processor_config": {"image_seq_length": 256}},
    "idefics3": _tiles(364, 169, 4),
    "internvl": {
        "preprocessor_config": {"size": {"height": 448, "width": 448}, "min_patches": 1, "max_patches": 12},
        "processor_config": {"image_seq_length": 256},
    },
    "llava": {
        "processor_config": LLAVA_PROCESSOR
        | {"image_processor": CLIP_PREPROCESSOR | {"image_processor_type": "CLIPImageProcessor"}}
    },
    "llava_next": {
        "processor_config": LLAVA_PROCESSOR
        | {"image_processor": CLIP_TILES | {"image_processor_type": "LlavaNextImageProcessor"}}
    },
    "llava_next_video": {"preprocessor_config": CLIP_TILES, "processor_config": LLAVA_PROCESSOR},
    "llava_onevision": {
        "preprocessor_config": {
            "size": {"height": 384, "width": 384},
            "image_grid_pinpoints": ONEVISION_PINPOINTS,
            "do_pad": True,
        },
        "processor_config": {
            "num_image_tokens": 729,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
    },
    "mistral3": PIXTRAL,
    "paligemma": {"preprocessor_config": {"image_seq_length": 1024, "size": {"height": 448, "width": 448}}},
    "qwen3_5": {"preprocessor_config": QWEN3},
    "qwen3_5_moe": {"preprocessor_config": QWEN3},
    "qwen3_vl": {"preprocessor_config": QWEN3},
    "qwen3_vl_moe": {"preprocessor_config": QWEN3},
    "smolvlm": _tiles(384, 81, 4),
}

#: Configs of model types without a layout, by their checkpoint; what they lack has the default of the config's class.
CONFIGS: dict[str, Json] = {
    "HuggingFaceM4/Idefics3-8B-Llama3": {
        "model_type": "idefics3",
        "scale_factor": 2,
        "text_config": LLAMA3_8B,
        "vision_config": {
            "model_type": "idefics3_vision",
            "hidden_size": 1152,
            "image_size": 364,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
        },
    },
    "llava-hf/LLaVA-NeXT-Video-7B-hf": {"model_type": "llava_next_video"},
    "Qwen/Qwen3.5-9B": {"model_type": "qwen3_5", "vision_config": {"out_hidden_size": 4096}},
    "Qwen/Qwen3.5-35B-A3B": {"model_type": "qwen3_5_moe", "vision_config": {"out_hidden_size": 2048}},
}

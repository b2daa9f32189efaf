"""The sizes of published checkpoints, from which ``benchmarks/shapes.py`` builds models without downloading.

Each entry has the contents of the checkpoint's config.json, preprocessor_config.json and processor_config.json, without
settings that do not influence shapes (token numbers, initial values). They are written from general knowledge of the
published models, not copied from their files.
"""

from dataclasses import dataclass, field, replace
from typing import Any

Json = dict[str, Any]

CLIP_COLOURS: Json = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF_COLOURS: Json = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@dataclass(frozen=True)
class Published:
    """One checkpoint's sizes.

    Attributes
    ----------
    checkpoint : name on the hub.
    config, preprocessor, processor : contents of its files.
    tokens : the special tokens that its tokenizer names, and further ones.
    placeholder : text of its chat template for a picture.
    picture : width and height of the picture in the question. It gives as many visual tokens as in the TOPS paper, or
        nearly: the paper counts LLaVA-NeXT's without newlines.
    presets : prefix of the names of the paper's budgets for it; if empty, fractions are measured.
    """

    checkpoint: str
    config: Json
    preprocessor: Json
    processor: Json
    tokens: dict[str, str] = field(default_factory=lambda: {"image_token": "<image>"})
    more_tokens: tuple[str, ...] = ()
    placeholder: str = "<image>"
    picture: tuple[int, int] = (672, 448)
    presets: str | None = None


def _llama(width: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, context: int) -> Json:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
    }


VICUNA_7B = _llama(4096, 11008, 32, 32, 32, 32064, 4096)
VICUNA_13B = _llama(5120, 13824, 40, 40, 40, 32064, 4096)
MISTRAL_7B = _llama(4096, 14336, 32, 32, 8, 32064, 32768) | {"model_type": "mistral", "sliding_window": None}
LLAMA3_8B = _llama(4096, 14336, 32, 32, 8, 128320, 8192)
QWEN2_7B = _llama(3584, 18944, 28, 28, 4, 152064, 32768) | {"model_type": "qwen2"}
QWEN2_0_5B = _llama(896, 4864, 24, 14, 2, 152000, 32768) | {"model_type": "qwen2", "tie_word_embeddings": True}
QWEN3_8B = _llama(4096, 12288, 36, 32, 8, 151936, 262144) | {"head_dim": 128}
SMOLLM2_135M = _llama(576, 1536, 30, 9, 3, 49280, 8192)
SMOLLM2_1_7B = _llama(2048, 8192, 24, 32, 32, 49280, 16384)


def _vit(kind: str, width: int, intermediate: int, layers: int, heads: int, image: int, patch: int) -> Json:
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
    }


CLIP = _vit("clip_vision_model", 1024, 4096, 24, 16, 336, 14) | {"projection_dim": 768}
SIGLIP = _vit("siglip_vision_model", 1152, 4304, 26, 16, 384, 14) | {"vision_use_head": False}
INTERN_VIT_300M = _vit("internvl_vision", 1024, 4096, 24, 16, 448, 14) | {"attention_bias": True}

CLIP_PREPROCESSOR: Json = {
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    **CLIP_COLOURS,
}
LLAVA_PROCESSOR: Json = {
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "image_token": "<image>",
}
NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"


def _llava(checkpoint: str, text: Json, presets: str | None) -> Published:
    config = {
        "model_type": "llava",
        "vision_config": CLIP,
        "text_config": text,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    preprocessor = CLIP_PREPROCESSOR | {"image_processor_type": "CLIPImageProcessor"}
    return Published(
        checkpoint, config, preprocessor, LLAVA_PROCESSOR | {"processor_class": "LlavaProcessor"}, presets=presets
    )


def _llava_next(checkpoint: str, text: Json, presets: str | None) -> Published:
    config = {
        "model_type": "llava_next",
        "vision_config": CLIP,
        "text_config": text,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_grid_pinpoints": NEXT_PINPOINTS,
    }
    tiles = {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": NEXT_PINPOINTS}
    processor = LLAVA_PROCESSOR | {"processor_class": "LlavaNextProcessor"}
    return Published(checkpoint, config, CLIP_PREPROCESSOR | tiles, processor, picture=(672, 672), presets=presets)


def _smol(checkpoint: str, vision: Json, text: Json, block: int) -> Published:
    size = vision["image_size"]
    config = {
        "model_type": "idefics3",
        "vision_config": vision | {"model_type": "idefics3_vision"},
        "text_config": text,
        "scale_factor": block,
    }
    preprocessor = {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 4 * size},
        "max_image_size": {"longest_edge": size},
        "do_image_splitting": True,
        **HALF_COLOURS,
    }
    return Published(
        checkpoint,
        config,
        preprocessor,
        {"processor_class": "Idefics3Processor", "image_seq_len": (size // vision["patch_size"] // block) ** 2},
        tokens={"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"},
        more_tokens=(
            "<end_of_utterance>",
            "<global-img>",
            *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
        ),
        picture=(1024, 768),
    )


def _onevision(checkpoint: str, text: Json) -> Published:
    return Published(
        checkpoint,
        {
            "model_type": "llava_onevision",
            "vision_config": SIGLIP,
            "text_config": text,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
            "image_grid_pinpoints": ONEVISION_PINPOINTS,
        },
        {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 384, "width": 384},
            "image_grid_pinpoints": ONEVISION_PINPOINTS,
            "do_pad": True,
            **HALF_COLOURS,
        },
        {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 729,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
        tokens={"image_token": "<image>", "video_token": "<video>"},
        picture=(768, 768),
    )


SIZES: dict[str, Published] = {
    "llava-1.5-7b": _llava("llava-hf/llava-1.5-7b-hf", VICUNA_7B, "llava-1.5-7b"),
    "llava-1.5-13b": _llava("llava-hf/llava-1.5-13b-hf", VICUNA_13B, "llava-1.5-13b"),
    "llava-next-7b": _llava_next("llava-hf/llava-v1.6-vicuna-7b-hf", VICUNA_7B, "llava-next-7b"),
    "llava-next-13b": _llava_next("llava-hf/llava-v1.6-vicuna-13b-hf", VICUNA_13B, "llava-next-13b"),
    "llava-next-mistral-7b": _llava_next("llava-hf/llava-v1.6-mistral-7b-hf", MISTRAL_7B, None),
    "llava-next-llama3-8b": _llava_next("llava-hf/llama3-llava-next-8b-hf", LLAMA3_8B, None),
    "llava-onevision-7b": _onevision("llava-hf/llava-onevision-qwen2-7b-ov-hf", QWEN2_7B),
    "llava-onevision-0.5b": _onevision("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", QWEN2_0_5B),
    "qwen2.5-vl-7b": Published(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        {
            "model_type": "qwen2_5_vl",
            "text_config": QWEN2_7B
            | {"model_type": "qwen2_5_vl_text", "max_position_embeddings": 128000}
            | {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1000000.0},
            "vision_config": {
                "model_type": "qwen2_5_vl",
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "patch_size": 14,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
                "tokens_per_second": 2,
            },
        },
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **CLIP_COLOURS,
        },
        {"processor_class": "Qwen2_5_VLProcessor"},
        tokens=QWEN_TOKENS,
        placeholder=QWEN_PLACEHOLDER,
        picture=(1008, 1008),
        presets="qwen2.5-vl-7b",
    ),
    "qwen3-vl-8b": Published(
        "Qwen/Qwen3-VL-8B-Instruct",
        {
            "model_type": "qwen3_vl",
            "text_config": QWEN3_8B
            | {"model_type": "qwen3_vl_text", "rope_theta": 5000000}
            | {"rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}},
            "vision_config": {
                "model_type": "qwen3_vl",
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "out_hidden_size": 4096,
                "patch_size": 16,
                "deepstack_visual_indexes": [8, 16, 24],
                "num_position_embeddings": 2304,
            },
        },
        {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "size": {"longest_edge": 16777216, "shortest_edge": 65536},
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **HALF_COLOURS,
        },
        {"processor_class": "Qwen3VLProcessor"},
        tokens=QWEN_TOKENS,
        placeholder=QWEN_PLACEHOLDER,
        picture=(1024, 1024),
    ),
    "internvl3-8b": Published(
        "OpenGVLab/InternVL3-8B-hf",
        {
            "model_type": "internvl",
            "vision_config": INTERN_VIT_300M,
            "text_config": QWEN2_7B | {"vocab_size": 151674},
            "downsample_ratio": 0.5,
            "image_seq_length": 256,
            "tie_word_embeddings": False,
        },
        {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "size": {"height": 448, "width": 448},
            "crop_to_patches": False,
            "min_patches": 1,
            "max_patches": 12,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
        {"processor_class": "InternVLProcessor", "image_seq_length": 256},
        tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        placeholder="<IMG_CONTEXT>",
        picture=(896, 896),
        presets="internvl3-8b",
    ),
    "smolvlm-256m": _smol("HuggingFaceTB/SmolVLM-256M-Instruct", _vit("", 768, 3072, 12, 12, 512, 16), SMOLLM2_135M, 4),
    "smolvlm-2.2b": _smol("HuggingFaceTB/SmolVLM-Instruct", _vit("", 1152, 4304, 27, 16, 384, 14), SMOLLM2_1_7B, 3),
}


def small_llava() -> Published:
    """Return a LLaVA-1.5 for a CPU: 40 million weights, but 576 visual tokens and the tower's share of work (1/20)."""
    return _small(_llava("llava-1.5, small", SMALL_TEXT, None))


def small_llava_next() -> Published:
    """Return a LLaVA-NeXT of the same size: five tiles, up to 2,928 visual tokens."""
    return _small(_llava_next("llava-next, small", SMALL_TEXT, None))


SMALL_TEXT = _llama(512, 1376, 12, 8, 8, 512, 4096)


def _small(published: Published) -> Published:
    vision = _vit("clip_vision_model", 192, 768, 4, 3, 336, 14) | {"projection_dim": 64}
    return replace(published, config=published.config | {"vision_config": vision})


#: Sizes that no checkpoint has, by their names in benchmarks.
SMALL = {"small": small_llava, "small-next": small_llava_next}

"""Tiny forms of published sizes: the same kinds of layers, tiles and patches, fast enough for a CPU."""

from dataclasses import replace
from typing import Any

from benchmarks.published_sizes import SIZES, Published


def narrow(published: Published) -> Published:
    """Return a size with the same decoder layers, tiles and patches, 4 heads of 16 and two vision layers."""
    text: dict[str, Any] = dict(published.config["text_config"])
    kv_heads = 4 if text["num_key_value_heads"] == text["num_attention_heads"] else 2
    text |= {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": kv_heads}
    text |= {"vocab_size": 512} | ({"head_dim": 16} if "head_dim" in text else {})
    vision: dict[str, Any] = dict(published.config["vision_config"])
    vision |= {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    return replace(published, config=published.config | {"text_config": text, "vision_config": vision})


def tiny(published: Published) -> Published:
    """Return a narrow size with eight decoder layers and a picture of one tile."""
    small = narrow(published)
    text, vision = small.config["text_config"], small.config["vision_config"]
    text |= {"num_hidden_layers": 8}
    if published.config["model_type"] == "qwen2_5_vl":
        vision.pop("num_hidden_layers")  # another name for the depth
        text |= {"hidden_size": 512}  # its rotary embedding has heads of 128
        vision |= {"depth": 4, "fullatt_block_indexes": [3], "num_heads": 2, "out_hidden_size": 512}
    return replace(small, picture=(224, 224), presets=None)


def use_tiny_sizes() -> None:
    """Make every benchmark of this process build the tiny form of a published size."""
    SIZES.update({name: tiny(published) for name, published in SIZES.items()})

"""Describe a video of Qwen-VL to vLLM's function for positions, as vLLM's own prompts do."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldConfig,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)


def video_alone(grid: Tensor, times: Mapping[str, Any], length: int) -> MultiModalFeatureSpec:
    """Return the description of a video whose tokens are the whole prompt.

    Args:
        grid: The number of times, rows and columns of patches, int64 ``[3]``.
        times: The data that say when its frames are shown, by their names in vLLM.
        length: The number of its tokens, with the text between the frames.
    """
    field = MultiModalFieldConfig.batched("video").field
    fields = {"video_grid_thw": grid, **times}
    data = MultiModalKwargsItem({name: MultiModalFieldElem(value, field) for name, value in fields.items()})
    return MultiModalFeatureSpec(data, "video", "", PlaceholderRange(offset=0, length=length))

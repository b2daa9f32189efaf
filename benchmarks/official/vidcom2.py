"""VidCom2: github.com/vllm-project/vllm (0.32.0), vllm/multimodal/video_prune/vidcom2.py; or a checkout of
github.com/xuyang-liu16/VidCom2, which keeps a number of tokens near the budget.
"""

from functools import partial
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from benchmarks.official.comparison import function_of
from benchmarks.official.videos import Kept, RandomVideo, compare_videos, places_of, random_video
from tops_engine.methods.vidcom2 import VidCom2

VLLM = "vllm/multimodal/video_prune/vidcom2.py"
REPOSITORY = "token_compressor/vidcom2/vidcom2.py"
PARTS = (
    "select_low_var_channels",
    "_multi_scale_gaussian",
    "compute_gaussian_scores",
    "compute_scales",
    "select_outlier_indices",
    "_map_linear_offset",
    "map_features",
)
TYPES: dict[str, Any] = {"List": list, "Tuple": tuple, "Dict": dict, "Any": Any, "Optional": Optional}


def official(checkout: Path, video: RandomVideo, count: int) -> Kept:
    share = count / video.attention.numel()
    return (of_vllm if (checkout / VLLM).exists() else of_repository)(checkout, video, share)


def of_vllm(checkout: Path, video: RandomVideo, share: float) -> Kept:
    gaussian = function_of(checkout, VLLM, "_multi_scale_gaussian", _ALPHAS=tuple(2.0**k for k in range(-3, 2)))
    mask = function_of(
        checkout,
        VLLM,
        "compute_retention_mask",
        compute_retained_tokens_count=function_of(checkout, VLLM, "compute_retained_tokens_count"),
        _multi_scale_gaussian=gaussian,
        _LOW_VAR_CHANNEL_RATIO=0.5,
        _SOFTMAX_TEMPERATURE=0.01,
    )
    num_frames, size, width = video.features.shape
    side = round(size**0.5)
    flat = video.features.reshape(-1, width)
    kept = mask(flat, (num_frames, side, side), 1, 1 - share).nonzero().flatten()
    return Kept(kept, flat[kept])


def of_repository(checkout: Path, video: RandomVideo, share: float) -> Kept:
    names: dict[str, Any] = {**TYPES, "MODEL_SPECS": {"qwen2_5_vl": {"tpf": None, "mapper": "linear"}}}
    for part in PARTS:
        names[part] = function_of(checkout, REPOSITORY, part, **names)
    compress = function_of(checkout, REPOSITORY, "vidcom2_compression", **names)
    size, width = video.features.shape[1:]
    kept: Tensor = compress(video.features.reshape(-1, width), "qwen2_5_vl", share, size)
    return Kept(places_of(kept, video), kept)


if __name__ == "__main__":
    compare_videos(__doc__, (512, 256, 128, 64), partial(random_video, 16, 8), official, VidCom2())

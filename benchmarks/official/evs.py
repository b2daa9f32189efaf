"""EVS: github.com/vllm-project/vllm (0.32.0), vllm/multimodal/video_prune/evs.py."""

from functools import partial
from pathlib import Path

from benchmarks.official.comparison import function_of
from benchmarks.official.videos import Kept, RandomVideo, compare_videos, random_video
from tops_engine.methods.evs import EVS

FILE = "vllm/multimodal/video_prune/evs.py"


def official(checkout: Path, video: RandomVideo, count: int) -> Kept:
    number = function_of(checkout, FILE, "compute_retained_tokens_count")
    mask = function_of(checkout, FILE, "compute_retention_mask", compute_retained_tokens_count=number)
    num_frames, size, width = video.features.shape
    side = round(size**0.5)
    rate = 1 - count / video.attention.numel()
    kept = mask(video.features.reshape(-1, width), (num_frames, side, side), 1, rate).nonzero().flatten()
    return Kept(kept, video.features.reshape(-1, width)[kept])


if __name__ == "__main__":
    compare_videos(__doc__, (512, 256, 128, 64), partial(random_video, 16, 8), official, EVS())

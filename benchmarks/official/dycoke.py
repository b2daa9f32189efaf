"""DyCoke: github.com/KD-TAO/DyCoke, the function dycole_ttm of llava/model/llava_arch.py.

The videos have 18 frames: for multiples of four, the code leaves a frame of the last window whole.
"""

from functools import partial
from pathlib import Path

from torch import Tensor

from benchmarks.official.comparison import function_of
from benchmarks.official.videos import Kept, RandomVideo, compare_videos, places_of, random_video
from tops_engine.methods.dycoke import DyCoke

NUM_FRAMES, SIDE = 18, 8
WHOLE = -(-NUM_FRAMES // 4)


def official(checkout: Path, video: RandomVideo, count: int) -> Kept:
    merge = function_of(checkout, "llava/model/llava_arch.py", "dycole_ttm")
    size, width = video.features.shape[1:]
    share = (count - WHOLE * size) // (NUM_FRAMES - WHOLE) / size
    kept: Tensor = merge(video.features.reshape(-1, width), size, 1 - share)
    return Kept(places_of(kept, video), kept)


if __name__ == "__main__":
    budgets = [SIDE**2 * WHOLE + each * (NUM_FRAMES - WHOLE) for each in (32, 16, 8, 4)]
    compare_videos(__doc__, budgets, partial(random_video, NUM_FRAMES, SIDE), official, DyCoke())

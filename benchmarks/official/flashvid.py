"""FlashVID: github.com/Fanziyang-v/FlashVID, flashvid_compression of flashvid/utils.py.

The first two tables are of videos of two frames in one segment, without and with tokens that are alike, the third of 16
frames in segments. The code rounds the clusters of each frame up, counts trees of three frames wrongly and clusters the
chosen tokens of segments of one frame again.
"""

import types
from functools import partial
from pathlib import Path
from typing import Any, Optional

from benchmarks.official.comparison import function_of
from benchmarks.official.videos import Kept, RandomVideo, compare_videos, random_video
from tops_engine.methods.flashvid import FlashVID

FILE = "flashvid/utils.py"
CHOOSING = "flashvid/token_selection.py"


def official(least_segments: int, checkout: Path, video: RandomVideo, count: int) -> Kept:
    names: dict[str, Any] = {"Tuple": tuple, "Optional": Optional, "FlashVidConfig": object}
    distances = function_of(checkout, CHOOSING, "pairwise_cosine_distances")
    choose = function_of(
        checkout, CHOOSING, "attn_div_based_token_selection", **names, pairwise_cosine_distances=distances
    )
    names["ALL_TOKEN_SELECTION_METHOD"] = {"attn_div": choose}
    for part in ("dpc_knn", "spatiotemporal_compression", "additional_segment", "segment", "segment_compression"):
        names[part] = function_of(checkout, FILE, part, **names)
    compress = function_of(checkout, FILE, "flashvid_compression", **names)
    config = types.SimpleNamespace(
        retention_ratio=count / video.attention.numel(),
        expansion=1.0,
        alpha=0.7,
        token_selection_method="attn_div",
        temporal_threshold=0.8,
        do_segment=True,
        segment_threshold=0.9 if least_segments > 1 else -1.0,
        min_segment_num=least_segments,
        complementary_segment=True,
    )
    features, tokens = compress(video.features, video.attention, config)
    return Kept(tokens, features)


if __name__ == "__main__":
    one_segment = FlashVID(segments=1, segment_threshold=-1)
    for changing in (1.0, 0.5):
        video = partial(random_video, 2, 8, changing=changing, scenes=1)
        compare_videos(__doc__, (80, 40, 20), video, partial(official, 1), one_segment)
    compare_videos(__doc__, (640, 320, 160), partial(random_video, 16, 8), partial(official, 8), FlashVID())

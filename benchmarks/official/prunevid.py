"""PruneVid: github.com/Visual-AI/PruneVid, merge_frames_dynamic of models/pllava/modeling_pllava.py.

The code returns features without their places, and merges each group to half whatever the budget; the budget here is
what it keeps.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.official.comparison import function_of
from benchmarks.official.videos import Kept, RandomVideo, compare_videos, random_video
from tops_engine.methods.prunevid import PruneVid

FILE = "models/pllava/modeling_pllava.py"
NUM_FRAMES, SIDE = 16, 8


def official(checkout: Path, video: RandomVideo, count: int) -> Kept:
    index_points = function_of(checkout, FILE, "index_points")
    names: dict[str, Any] = {"einsum": torch.einsum}
    names["cluster_dpc_knn"] = function_of(checkout, FILE, "cluster_dpc_knn", index_points=index_points)
    names |= {name: function_of(checkout, FILE, name) for name in ("refine_clusters", "segment_lengths")}
    config = SimpleNamespace(
        num_frames=NUM_FRAMES, pooling_shape=(NUM_FRAMES, SIDE, SIDE), temporal_segment_ratio=0.25, cluster_ratio=0.5
    )
    code: Any = SimpleNamespace(config=config)
    for part in ("compute_cluster_vectors", "spatial_merge_tokens", "merge_frames_dynamic"):
        function = function_of(checkout, FILE, f"PllavaForConditionalGeneration.{part}", **names)
        setattr(code, part, partial(function, code))
    merged, *_ = code.merge_frames_dynamic(video.features.flatten(0, 1)[None], threshold=0.8, k=7)
    return Kept(None, merged[0])


if __name__ == "__main__":
    # Segments of 4 frames, in which half of 64 places are static: 16 tokens of these, and 16 of each frame.
    compare_videos(__doc__, (320,), partial(random_video, NUM_FRAMES, SIDE), official, PruneVid())

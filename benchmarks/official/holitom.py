"""HoliTom: github.com/cokeshao/HoliTom, the functions of LlavaMetaForCausalLM_holitom before the language model.

Four windows of 8 frames have 32 static places and 32 others. The code rounds each part by itself; the first budgets
divide without a rest.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.official.comparison import function_of
from benchmarks.official.videos import Kept, RandomVideo, compare_videos, random_video
from tops_engine.methods.holitom import HoliTom

FILE = "holitom/llava_arch.py"
NUM_FRAMES, SIDE, THRESHOLD = 32, 8, 0.8
PARTS = (
    "cluster_dpc_knn",
    "select_static_windows",
    "merge_tokens_by_clustering",
    "merge_tokens_by_attention_density",
    "merge_tokens_by_density",
    "get_static_dynamic_features",
)


def official(checkout: Path, video: RandomVideo, count: int) -> Kept:
    code: Any = SimpleNamespace()
    for part in PARTS:
        setattr(code, part, partial(function_of(checkout, FILE, f"LlavaMetaForCausalLM_holitom.{part}"), code))
    features, attention = video
    num_frames, size = attention.shape
    similarity = torch.cosine_similarity(features[:-1], features[1:], dim=-1)
    windows, reduced = code.select_static_windows(similarity, num_frames, THRESHOLD, 1024)
    ratio = min(count / (num_frames * size - reduced), 1)
    static, dynamic, _, scores, static_places, places = code.get_static_dynamic_features(
        features, attention, windows, similarity, THRESHOLD
    )
    kept, tokens = [], []
    for number, (start, end) in enumerate(windows):
        merged, where = code.merge_tokens_by_attention_density(
            dynamic[number], scores[number], places[number], ratio, 0, 0.6, 7
        )
        kept.append(merged.flatten(0, 1))
        tokens.append((where + size * torch.arange(start, end + 1)[:, None]).flatten())
        if end > start:
            merged, where = code.merge_tokens_by_density(static[number][None], static_places[number], ratio, 0.6, 7)
            kept.append(merged.flatten(0, 1))
            tokens.append((where + size * start).flatten())
    return Kept(torch.cat(tokens).long(), torch.cat(kept))


if __name__ == "__main__":
    compare_videos(__doc__, (576, 288, 144, 72, 128), partial(random_video, NUM_FRAMES, SIDE), official, HoliTom())

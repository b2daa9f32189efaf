"""FastVID: github.com/LunarShen/FastVID, the part of Qwen2Model.forward for LLaVA-Video.

As in the code for Qwen2.5-VL, the mean of its tokens stands for a frame; newline tokens are left out of the comparison.
"""

import ast
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.official.videos import Kept, RandomVideo, compare_videos, random_video
from tops_engine.methods.fastvid import FastVID

FILE = "fastvid_llavavideo/LLaVA-NeXT/llava/model/language_model/modeling_qwen2.py"
NUM_FRAMES, SIDE = 64, 13


def selection_part(checkout: Path) -> Any:
    """Return the compiled statements that choose and merge, up to the newline tokens."""
    tree = ast.parse((checkout / FILE).read_text())
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    body = next(node.body for node in branches if "fastvid_retention_ratio" in ast.unparse(ast.Module(node.body, [])))
    end = next(number for number, node in enumerate(body) if ast.unparse(node).startswith("pure_select_index"))
    return compile(ast.Module(body[:end], []), FILE, "exec")


def official(checkout: Path, video: RandomVideo, count: int) -> Kept:
    width = video.features.shape[-1]
    newlines = torch.zeros(NUM_FRAMES, SIDE, 1, width)
    hidden: Tensor = torch.cat([video.features.view(NUM_FRAMES, SIDE, SIDE, width), newlines], dim=2)
    settings = SimpleNamespace(
        video_start_idx=0,
        video_token_len=NUM_FRAMES * SIDE * (SIDE + 1),
        frame_num=NUM_FRAMES,
        frame_attn_weights=video.attention,
        frame_global_features=video.features.mean(dim=1),
        fastvid_retention_ratio=count / NUM_FRAMES / SIDE**2 + 1e-6,
        fastvid_DySeg_c=8,
        fastvid_DySeg_tau=0.9,
        fastvid_STPrune_d=0.4,
        fastvid_DTM_p=4,
        fastvid_DTM_beta=0.6,
    )
    names: dict[str, Any] = {"torch": torch, "self": settings, "hidden_states": hidden.view(1, -1, width)}
    names["seq_length"] = settings.video_token_len
    exec(selection_part(checkout), names)
    return Kept(names["vision_indexs"], names["vision_tokens"])


if __name__ == "__main__":
    budgets = [NUM_FRAMES * each for each in (60, 32, 16, 8)]
    compare_videos(__doc__, budgets, partial(random_video, NUM_FRAMES, SIDE), official, FastVID())

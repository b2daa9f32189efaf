"""Write a small random Qwen3-VL as the single file that ComfyUI's Load CLIP reads."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints_qwen import save_qwen3_vl

#: Tokens of the published vocabulary, whose tokenizer comes with ComfyUI.
NUM_TOKENS = 151936
#: What ComfyUI fixes in its classes, so that a small file must have it too.
HEAD_DIM = 128
ROPE = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}


def save_qwen3_vl_file(path: Path, folder: Path) -> None:
    """Write the file; ``core_models.read_small_files`` tells ComfyUI its sizes.

    Parameters
    ----------
    path : of the file.
    folder : for the checkpoint that it is made of.
    """
    save_qwen3_vl(folder, head_dim=HEAD_DIM, rope_scaling=ROPE)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = 0.2 * torch.randn(NUM_TOKENS, weights[name].shape[1], generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.to(torch.bfloat16) for name, weight in weights.items()}, path)

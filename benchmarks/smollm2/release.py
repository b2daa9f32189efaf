"""Write the trained instrument as a LLaVA checkpoint, with the adapters merged into the language model."""

import shutil
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.smollm2.model import build, make_processor
from benchmarks.smollm2.training import adapted
from tops_engine.mini import mini_path

NAME = "adapters.safetensors"
#: The trained adapters and projector of the instrument that the docs measure, float16.
PUBLISHED = Path(__file__).parent / NAME


def export(folder: Path) -> None:
    """Write ``folder / "model"``, float16 safetensors, with what was trained in the folder or else what is published.

    What was trained there is also written alone, in the format of the published file. The vision tower is mini's, so
    mini's CLIP text tower belongs to it and is copied beside it.
    """
    checkpoint = folder / "adapters.pt"
    if checkpoint.exists():
        trained: dict[str, Tensor] = torch.load(checkpoint, map_location="cpu")["model"]
        save_file({name: value.half().contiguous() for name, value in trained.items()}, folder / NAME)
    # Both ways read the rounded weights, so both give the same model.
    weights = load_file(folder / NAME if checkpoint.exists() else PUBLISHED)
    processor = make_processor()
    model = build(processor)
    adapted(model)
    unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise SystemExit(f"The adapters have weights that the model lacks: {', '.join(unknown[:3])}")
    model.float()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
    model.half().save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    shutil.copytree(mini_path() / "clip", folder / "model" / "clip", dirs_exist_ok=True)

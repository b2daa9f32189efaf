"""Write the trained instrument as a LLaVA checkpoint, with the adapters merged into the language model."""

from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer

from benchmarks.smollm2.model import build, make_processor
from benchmarks.smollm2.training import adapted


def export(folder: Path) -> None:
    """Write ``folder / "model"`` from the newest checkpoint of the training, float16 safetensors."""
    processor = make_processor()
    model = build(processor)
    adapted(model)
    model.load_state_dict(torch.load(folder / "adapters.pt", map_location="cpu")["model"], strict=False)
    model.float()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
    model.half().save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")

"""Loads weights through ComfyUI's memory manager, so that its diffusion models and ours share the device.

Outside of ComfyUI nothing here has an effect: the engine moves its weights itself.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tops_engine.errors import OutOfMemory

from .comfyui_host import host, in_comfyui

if TYPE_CHECKING:
    from tops_engine.engine import Engine
    from tops_engine.families import Family
    from tops_engine.settings import ModelSpec

#: Working memory in addition to the KV cache: activations of the vision tower, logits, the attention of one layer.
WORKING_BYTES = 512 * 2**20

#: Positions of a prompt for which the KV cache is planned. Longer prompts are rare and use the reserve of torch.
PLANNED_POSITIONS = 4096


class Resident(Protocol):
    """A model whose weights are moved.

    Attributes
    ----------
    patcher : ComfyUI's entry for the loaded weights; None before they are loaded.
    """

    engine: "Engine"
    spec: "ModelSpec"
    patcher: Any


def bring_in(model: Resident, max_tokens: int, batch_size: int = 1) -> "Engine":
    """Return the engine with its weights on the device. Call it right before every generation.

    Raises
    ------
    OutOfMemory
        If the device cannot hold the model and its working memory even with everything else moved out.
    """
    engine = model.engine
    if not in_comfyui():
        return engine
    # Tensors created in ComfyUI's inference mode would remain inference tensors.
    if not engine.is_loaded:
        host().show_text(f"Loading {model.spec.model} ...")
    with torch.inference_mode(False):
        if engine.is_quantised:
            return _bring_in_quantised(engine)
        family = engine.load_at_rest()
    from comfy import model_management

    patcher = _patcher(model, family)
    room = _working_bytes(family.decoder, max_tokens) * batch_size + WORKING_BYTES
    _check_fit(engine, patcher.model_size() + room)
    model_management.load_models_gpu([patcher], memory_required=room)
    return engine


def move_out(model: Resident) -> None:
    """Free the memory of the device and the weights in main memory; the next question loads them again."""
    if in_comfyui() and model.patcher is not None:
        from comfy import model_management

        patcher, model.patcher = model.patcher, None
        others = [loaded for loaded in model_management.current_loaded_models if loaded.model is not patcher]
        model_management.free_memory(1e30, patcher.load_device, keep_loaded=others)
    model.engine.unload()


def _patcher(model: Resident, family: "Family") -> Any:
    """Return the entry of the model with ComfyUI, a new one if the weights were loaded again."""
    if model.patcher is None or model.patcher.model.family is not family:
        from comfy import model_management

        device = model.engine.device
        resting = device if device.type == "cpu" else model_management.unet_offload_device()
        host_class, patcher_class = _patcher_classes()
        model.patcher = patcher_class(
            host_class(family, model.engine.forget, resting), load_device=device, offload_device=resting
        )
    return model.patcher


@functools.cache
def _patcher_classes() -> tuple[type, type]:
    from comfy.model_patcher import ModelPatcher

    class VisionLanguageModel(torch.nn.Module):
        """Holds the transformers model: ComfyUI writes to ``device``, which is read-only on the model itself."""

        def __init__(self, family: "Family", forget: Callable[[], None], device: torch.device) -> None:
            super().__init__()
            self.net = family.model
            self.family, self.forget = family, forget
            self.device = device

    class WholePatcher(ModelPatcher):  # type: ignore[misc]
        """Puts all weights on the device or none: transformers' layers cannot stream them from main memory."""

        def partially_load(self, device_to: Any, extra_memory: float = 0, **options: Any) -> Any:
            loaded = super().partially_load(device_to, extra_memory=1e32, **options)
            self.model.family.to(device_to)  # moves tensors that are not part of the transformers model, too
            return loaded

        def partially_unload(self, *_: Any, **__: Any) -> int:
            return 0  # means "not enough"; ComfyUI then detaches the whole model

        def detach(self, unpatch_all: bool = True) -> Any:
            net = super().detach(unpatch_all)
            self.model.family.to(self.offload_device)
            self.model.forget()  # the engine keeps states of earlier prompts on the device, too
            return net

    return VisionLanguageModel, WholePatcher


def _bring_in_quantised(engine: "Engine") -> "Engine":
    """Make room before quantised weights load: they cannot move and stay until they are unloaded."""
    if not engine.is_loaded:
        from comfy import model_management

        model_management.free_memory(1e30, engine.device)
        _ = engine.family
    return engine


def _working_bytes(decoder: Any, max_tokens: int) -> int:
    positions = min(decoder.max_positions, PLANNED_POSITIONS + max_tokens)
    return int(decoder.shape.kv_cache_bytes([positions] * decoder.num_layers, 0, decoder.dtype.itemsize))


def _check_fit(engine: "Engine", needed: int) -> None:
    if engine.device.type == "cpu":
        return
    from comfy import model_management

    total = model_management.get_total_memory(engine.device)
    if needed > total:
        raise OutOfMemory(
            f"The model needs {needed / 2**30:.1f} GiB and {engine.device} has {total / 2**30:.1f} GiB; in TOPS Load "
            "Model choose quantization 4bit or 8bit, or device cpu."
        )

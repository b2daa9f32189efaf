"""TOPS Load from CLIP: our nodes on a language model that ComfyUI loaded."""

from typing import TYPE_CHECKING, Any

from tops_engine.settings import ModelSpec

from .models import NodeModel, TopsModel
from .prune_llm import CLIP, expect_clip
from .sockets import MODEL

if TYPE_CHECKING:
    from tops_engine.engine import Engine
    from tops_engine.families import Family


class LoadFromClip:
    """Use a language model that ComfyUI loaded, without a second copy."""

    NODE_ID = "TOPSLoadFromClip"
    TITLE = "TOPS Load from CLIP (loaded VLM)"
    CATEGORY = "TOPS"
    EXPERIMENTAL = True  # it reads classes of ComfyUI that are no public interface
    DESCRIPTION = (
        "The model of a CLIP for the TOPS nodes: its file, its memory, no second copy. It runs Qwen3-VL and Qwen3.5 "
        "as Load CLIP gives them, also with LoRA and from quantised files."
    )
    SEARCH_ALIASES = ["vlm", "qwen3-vl", "qwen3.5", "vision language", "text encoder", "load clip"]
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model, for TOPS Ask and every other TOPS node that asks a model on this machine.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": (CLIP, {"tooltip": "A vision-language model, from Load CLIP."})}}

    def load(self, clip: Any) -> tuple[NodeModel]:
        return (ClipModel(expect_clip(clip)),)


class ClipModel(TopsModel):
    """Socket TOPS_MODEL: a model that ComfyUI loaded and keeps.

    Parameters
    ----------
    clip : ComfyUI's CLIP.

    Raises
    ------
    UnsupportedModel
        If our nodes cannot run on it.
    """

    def __init__(self, clip: Any) -> None:
        from .comfyui_llm.language_model import find_language_model

        self._clip = clip
        model = find_language_model(clip)
        device = clip.patcher.load_device
        self.spec = ModelSpec(model=f"{model.kind} of ComfyUI", device=str(device))
        self.engine = _engine(self.spec, _family(clip))

    def ready(self, max_tokens: int, batch_size: int = 1) -> "Engine":
        self._clip.load_model()
        return self.engine

    def free(self) -> list[str]:
        self.engine.forget()
        return []  # ComfyUI frees its model itself


def _family(clip: Any) -> "Family":
    import torch
    from comfy import model_management

    from .comfyui_llm.language_model import find_language_model
    from .comfyui_llm.shared_family import shared_family

    device = clip.patcher.load_device
    dtype = torch.bfloat16 if model_management.should_use_bf16(device) else torch.float32
    with torch.inference_mode(False):
        return shared_family(find_language_model(clip), clip.tokenizer, device, dtype)


def _engine(spec: ModelSpec, family: "Family") -> "Engine":
    from tops_engine.engine import Engine  # imports transformers, which is slow

    class ClipEngine(Engine):
        """An engine on a family that it neither loads nor frees."""

        def unload(self) -> None:
            self.forget()

        def offload(self) -> None:
            self.forget()

    engine = ClipEngine(spec)
    engine.use(family)
    return engine

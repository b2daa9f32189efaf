"""Which of vLLM's models are replaced, and what becomes of the others."""

from dataclasses import dataclass
from typing import NoReturn

#: Architectures as config.json names them, and the class that prunes them.
PRUNED = {
    "LlavaForConditionalGeneration": "vllm_tops.llava:PrunedLlava",
    "LlavaNextForConditionalGeneration": "vllm_tops.llava_next:PrunedLlavaNext",
    "LlavaOnevisionForConditionalGeneration": "vllm_tops.llava_onevision:PrunedLlavaOnevision",
    "InternVLForConditionalGeneration": "vllm_tops.internvl:PrunedInternVL",
    "Idefics3ForConditionalGeneration": "vllm_tops.idefics3:PrunedIdefics3",
    "SmolVLMForConditionalGeneration": "vllm_tops.idefics3:PrunedSmolVLM",
    "Qwen2VLForConditionalGeneration": "vllm_tops.qwen_vl:PrunedQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "vllm_tops.qwen_vl:PrunedQwen25VL",
    "Qwen3VLForConditionalGeneration": "vllm_tops.qwen_vl:PrunedQwen3VL",
}


@dataclass(frozen=True)
class Refused:
    """Stands in vLLM's registry for a model that would run, but unpruned."""

    architecture: str

    def inspect_model_cls(self) -> NoReturn:
        """End the start of the server; vLLM asks this first of all about its model.

        Raises:
            SystemExit: Always; it ends the process with the sentence alone.
        """
        raise SystemExit(f"TOPS: {unsupported(self.architecture)} Without TOPS_KEEP, vLLM serves it unpruned.")

    load_model_cls = inspect_model_cls


def unsupported(architecture: str) -> str:
    """The sentence about a model that cannot be pruned."""
    return f"{architecture} cannot be pruned in vLLM yet; these can: {', '.join(PRUNED)}."


def replace_models() -> None:
    """Register the pruned models, and refuse all others that take pictures."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.registry import _MULTIMODAL_MODELS

    for architecture in _MULTIMODAL_MODELS.keys() - PRUNED.keys():
        ModelRegistry.models[architecture] = Refused(architecture)
    for architecture, where in PRUNED.items():
        ModelRegistry.register_model(architecture, where)

"""The models of vLLM that are replaced by pruned ones; all others that take pictures are refused."""

from dataclasses import dataclass
from typing import NoReturn

#: The pruned class for each architecture, as config.json names it.
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
    "Qwen3VLMoeForConditionalGeneration": "vllm_tops.qwen3_5:PrunedQwen3VLMoe",
    "Qwen3_5ForConditionalGeneration": "vllm_tops.qwen3_5:PrunedQwen35",
    "Qwen3_5MoeForConditionalGeneration": "vllm_tops.qwen3_5:PrunedQwen35Moe",
    "Gemma3ForConditionalGeneration": "vllm_tops.gemma3:PrunedGemma3",
    "Mistral3ForConditionalGeneration": "vllm_tops.mistral3:PrunedMistral3",
}


@dataclass(frozen=True)
class Refused:
    """Entry in vLLM's registry for a model that vLLM would run unpruned."""

    architecture: str

    def inspect_model_cls(self) -> NoReturn:
        """Stop the server; vLLM calls this method before any other one of the model.

        Raises:
            SystemExit: Always; the process ends with this sentence and no traceback.
        """
        raise SystemExit(f"TOPS: {unsupported(self.architecture)} Without TOPS_KEEP, vLLM serves it unpruned.")

    load_model_cls = inspect_model_cls


def unsupported(architecture: str) -> str:
    """Return the error message for a model that cannot be pruned."""
    return f"{architecture} cannot be pruned in vLLM yet; these can: {', '.join(PRUNED)}."


def replace_models() -> None:
    """Register the pruned models, and refuse all others that take pictures."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.model_executor.models.registry import _MULTIMODAL_MODELS

    from vllm_tops.checks import Verified, checks_of

    for architecture in _MULTIMODAL_MODELS.keys() - PRUNED.keys():
        ModelRegistry.models[architecture] = Refused(architecture)
    for architecture, where in PRUNED.items():
        ModelRegistry.register_model(architecture, where)
        MODELS_CONFIG_MAP[architecture] = Verified(checks_of(architecture), MODELS_CONFIG_MAP.get(architecture))

"""A model family in one file: LLaVA checkpoints whose config has a model type that transformers does not know."""

from typing import Any, ClassVar

from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from tops_engine.families.llava import Llava


class ToyLlava(Llava):
    """Checkpoints in the layout of LLaVA-1.5 with the model type ``toy_llava``."""

    model_types: ClassVar[tuple[str, ...]] = ("toy_llava",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {"toy_llava": ("nobody/toy-llava-7b",)}
    processor_class = LlavaProcessor

    @classmethod
    def load_model(cls, source: str, **options: Any) -> tuple[Any, list[str]]:
        model, info = LlavaForConditionalGeneration.from_pretrained(
            source, config=LlavaConfig.from_pretrained(source, model_type="llava"), output_loading_info=True, **options
        )
        return model, sorted(info["missing_keys"])

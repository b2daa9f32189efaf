"""TOPS Prune LLM and TOPS LLM Report: ComfyUI's own language models with pruned pictures."""

import logging
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tops_engine.errors import InvalidInput, UnsupportedModel
from tops_engine.settings import Pruning

from .asking import map_of
from .sockets import PRUNING, PRUNING_TIP, STATS, Stats, expect_pruning

if TYPE_CHECKING:
    from .comfyui_llm.language_model import LanguageModel

CLIP = "CLIP"

_log = logging.getLogger(__name__)

ENCODING_TIP = (
    "Prune pictures also where this CLIP encodes a prompt for an image model (Qwen-Image-Edit and others). It changes "
    "the conditioning; only stages before the language model apply."
)


class PruneLLM:
    """Make ComfyUI's own language model read fewer visual tokens."""

    NODE_ID = "TOPSPruneLLM"
    TITLE = "TOPS Prune LLM (faster Generate Text)"
    CATEGORY = "TOPS"
    EXPERIMENTAL = True  # it reads classes of ComfyUI that are no public interface
    DESCRIPTION = (
        "Makes Generate Text faster on pictures: it returns the CLIP with visual tokens pruned before and between the "
        "layers of its language model. Qwen-VL, Qwen3.5 and Gemma; another CLIP passes through with a warning. The "
        "CLIP that comes in stays as it is."
    )
    SEARCH_ALIASES = ["generate text", "textgenerate", "speed", "token pruning", "qwen3-vl", "gemma", "clip"]
    RETURN_TYPES = (CLIP, "STRING")
    RETURN_NAMES = ("clip", "info")
    OUTPUT_TOOLTIPS = (
        "For Generate Text, and for TOPS LLM Report behind it.",
        "The model that was found and what is kept, or why nothing is pruned.",
    )
    FUNCTION = "prune"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"clip": (CLIP, {"tooltip": "A vision-language model, from Load CLIP."})},
            "optional": {
                "pruning": (PRUNING, {"tooltip": PRUNING_TIP}),
                "image_prompts": ("BOOLEAN", {"default": False, "tooltip": ENCODING_TIP}),
            },
        }

    def prune(self, clip: Any, pruning: Pruning | None = None, image_prompts: bool = False) -> dict[str, Any]:
        settings, clip = expect_pruning(pruning), expect_clip(clip)
        from .comfyui_llm.language_model import find_language_model  # imports transformers, which is slow
        from .comfyui_llm.patches import pruned_clone

        try:
            model = find_language_model(clip)
        except UnsupportedModel as error:
            info = f"Warning: {error} It passes through unpruned."
            _log.warning("TOPS Prune LLM: %s It passes through unpruned.", error)
        else:
            check_signals(settings, model)
            clip = pruned_clone(clip, model, settings, image_prompts)
            info = f"{model.kind} ({model.name}): {settings.label}, {budget_words(settings)}"
        return {"ui": {"text": [info]}, "result": (clip, info)}


class LLMReport:
    """Report what Generate Text read behind TOPS Prune LLM."""

    NODE_ID = "TOPSLLMReport"
    TITLE = "TOPS LLM Report (what was kept)"
    CATEGORY = "TOPS"
    EXPERIMENTAL = True  # it reads classes of ComfyUI that are no public interface
    DESCRIPTION = "Shows which visual tokens Generate Text read behind TOPS Prune LLM, and how long it took."
    SEARCH_ALIASES = ["token map", "usage", "statistics", "generate text"]
    RETURN_TYPES = ("STRING", "IMAGE", STATS, "STRING")
    RETURN_NAMES = ("text", "token_map", "stats", "stats_text")
    OUTPUT_TOOLTIPS = (
        "The text that came in.",
        "The pictures beside what was kept of them at each stage.",
        "Everything measured, for TOPS Token Map.",
        "Tokens and times in words.",
    )
    FUNCTION = "report"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip": (CLIP, {"tooltip": "The CLIP from TOPS Prune LLM that Generate Text used."}),
                "text": ("STRING", {"default": "", "multiline": True, "tooltip": "The text of Generate Text."}),
            }
        }

    def report(self, clip: Any, text: str) -> dict[str, Any]:
        clip = expect_clip(clip)
        from .comfyui_llm.patches import runs_of  # imports transformers, which is slow
        from .comfyui_llm.report import answer_of

        runs = runs_of(clip)
        if runs is None:
            raise InvalidInput("This CLIP is not pruned; connect the one from TOPS Prune LLM, if that knows the model.")
        written = [run for run in reversed(runs.finished) if clip.decode(run.token_ids) == text]
        if not written:
            raise InvalidInput("This CLIP did not write this text; connect the text of the Generate Text that uses it.")
        answer = answer_of(written[0], text)
        stats = Stats((answer,))
        result: tuple[str, Tensor, Stats, str] = (text, map_of(answer), stats, str(stats))
        return {"ui": {"text": [str(stats)]}, "result": result}


def expect_clip(value: Any) -> Any:
    """Return the connected CLIP."""
    if not hasattr(value, "patcher") or not hasattr(value, "cond_stage_model"):
        raise InvalidInput(f"The input 'clip' got a {type(value).__name__}; connect it to Load CLIP.")
    return value


def check_signals(pruning: Pruning, model: "LanguageModel") -> None:
    """Refuse a pruning that needs what ComfyUI's model does not give, before anything runs.

    Raises
    ------
    InvalidInput
        If the pruning does something before or in the vision tower, or its method reads what is not known; it names
        what that is.
    """
    method = pruning.method_instance
    if pruning.method == "resize" or pruning.tower_keep != 1 or pruning.dedup != "none":
        raise InvalidInput(
            "TOPS Prune LLM leaves pictures and ComfyUI's vision tower as they are; in TOPS Pruning choose another "
            "method than resize, and leave out tower_keep and dedup."
        )
    if pruning.schedule is None:
        _ = pruning.budget  # refuses a cascade and a limit of cost
    if method.reads_question:
        raise InvalidInput(
            f"Method {pruning.method!r} reads the question before the language model, which ComfyUI does not hand on; "
            "choose another method in TOPS Pruning."
        )
    if pruning.rectify != "none":
        raise InvalidInput("ComfyUI's attention takes no bias; leave out rectify in TOPS Pruning.")
    if method.watched_layers(num_layers=32):
        raise InvalidInput(
            f"Method {pruning.method!r} watches the parts of layers, which ComfyUI runs itself; choose another method "
            "in TOPS Pruning."
        )
    missing = set(method.signals) - model.tower.signal_names - {"cls_features"}
    if missing and method.prunes_before_the_llm:
        raise InvalidInput(
            f"{model.kind} has no vision tower that gives {', '.join(sorted(missing))}, which method "
            f"{pruning.method!r} needs; choose divprune in TOPS Pruning."
        )


def budget_words(pruning: Pruning) -> str:
    """Return what a pruning keeps, in a few words."""
    if pruning.schedule is not None:
        return f"schedule {pruning.model_dump(mode='json')['schedule']}"
    keep = pruning.budget
    return f"keeps {100 * keep:.1f} % of the visual tokens" if isinstance(keep, float) else f"keeps {keep} tokens"

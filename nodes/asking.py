"""TOPS Ask, and the streaming that other nodes share with it."""

import time
from typing import Any

from PIL import Image
from torch import Tensor

from tops_engine.answers.base import BaseAnswer, ReasoningPiece
from tops_engine.budget import Keep
from tops_engine.contract import Request
from tops_engine.conversation.messages import own_keep, user_message
from tops_engine.errors import InvalidInput
from tops_engine.settings import Generation, Pruning

from .comfyui_host import host, refusal, stop_if_interrupted
from .models import NodeModel, freed_if
from .notes import notes
from .pictures import all_pictures, growing_pictures, to_image
from .presets import NO_PRESET, preset_prompt, preset_widget
from .sockets import (
    HISTORY,
    MODEL,
    PRUNING,
    PRUNING_TIP,
    STATS,
    History,
    Stats,
    expect_history,
    expect_model,
    pruning_for,
)
from .widgets import Widget, advanced, settings_from, widget

#: Seconds between two updates of the text on a node.
TEXT_INTERVAL = 0.1

# What VALIDATE_INPUTS sees of a socket without a link.
UNLINKED = object()

FIELDS = Generation.model_fields

SEED = widget(
    FIELDS["seed"],
    default=0,
    control_after_generate="fixed",  # a new seed after each run would run everything behind the node again
    tooltip="Makes sampling repeatable; -1 is a new seed each time. At temperature 0 it changes nothing.",
)


def generation_widgets(max_tokens: int = 256) -> dict[str, Widget]:
    """Return the widgets of every node that asks."""
    return {
        "max_tokens": widget(FIELDS["max_tokens"], default=max_tokens),
        "temperature": widget(FIELDS["temperature"], step=0.05),
        "seed": SEED,
    }


#: Whether the model thinks before it answers, and for how long.
THINKING: Widget = ("STRING", {"default": "", "tooltip": f"{FIELDS['thinking'].description} Empty is unset."})

#: Whether the node frees the model.
UNLOAD: Widget = (
    "BOOLEAN",
    {"default": False, "tooltip": "Free the model's memory when this node is done; the next question loads it again."},
)

REASONING_TIP = "What a thinking model wrote before its answer; empty for other models."


def seed_change(seed: int | None, temperature: float | None) -> float:
    """Return what IS_CHANGED says of a node that samples: NaN, unequal to itself, where each run has a new seed."""
    return float("nan") if seed == -1 and temperature != 0 else 0.0


def sampling_widgets() -> dict[str, Widget]:
    """Return the widgets that few users need, for the end of the node."""
    stop = (FIELDS["stop"].description or "") + " One a line."
    return {
        "top_p": widget(FIELDS["top_p"]),
        "top_k": widget(FIELDS["top_k"]),
        "repetition_penalty": widget(
            FIELDS["repetition_penalty"], tooltip="Above 1 discourages repeating; 0 takes the checkpoint's own value."
        ),
        "stop": widget(FIELDS["stop"], multiline=True, tooltip=stop),
    }


def ask_streaming(model: NodeModel, request: Request) -> BaseAnswer:
    """Answer a request and show its text and token count on the node; an interruption stops within one token."""
    running, total = host(), request.generation.max_tokens
    text, reasoning, shown = "", "", 0.0
    for piece in model.stream(request, running):
        if isinstance(piece, BaseAnswer):
            answer = piece
            break
        # The node shows the reasoning while nothing of the answer is there.
        reasoning += piece.text if isinstance(piece, ReasoningPiece) else ""
        text += piece if isinstance(piece, str) else ""
        if time.monotonic() - shown > TEXT_INTERVAL:
            running.show_text(text or reasoning)
            shown = time.monotonic()
    stop_if_interrupted(running)
    running.show_text(answer.text)
    running.progress(total, total)
    return answer


def map_of(answer: BaseAnswer) -> Tensor:
    """Return the token map as IMAGE: a small blank one if there was no picture, or if a server does not state it."""
    if answer.token_map is None or not answer.token_map.visuals:
        return to_image([Image.new("RGB", (64, 64), "white")])
    return to_image([answer.token_map.draw()])


class Ask:
    """Ask a question about pictures, or continue a conversation."""

    NODE_ID = "TOPSAsk"
    TITLE = "TOPS Ask (VLM, image to text)"
    CATEGORY = "TOPS"
    DESCRIPTION = "Asks a model about one or more pictures, or just talks; the answer appears while it is written."
    SEARCH_ALIASES = [
        "vlm", "llava", "qwen-vl", "vqa", "visual question", "caption", "describe image", "image to text",
        "image to prompt", "chat", "vision language", "multimodal", "llm", "prompt enhancer", "ocr",
    ]  # fmt: skip
    RETURN_TYPES = ("STRING", "IMAGE", HISTORY, STATS, "STRING", "STRING")
    RETURN_NAMES = ("answer", "token_map", "history", "stats", "stats_text", "reasoning")
    OUTPUT_TOOLTIPS = (
        "The answer.",
        "The pictures beside what was kept of them at each stage.",
        "The conversation with this turn; connect it to the next TOPS Ask.",
        "Everything measured, for TOPS Token Map.",
        "Tokens, times and FLOPs in words.",
        REASONING_TIP,
    )
    FUNCTION = "ask"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        more = "Another picture of the same question, of any size."
        return {
            "required": {
                "model": (MODEL, {"tooltip": "From TOPS Load Model."}),
                "prompt": (
                    "STRING",
                    {"default": "What is shown in this picture?", "multiline": True, "tooltip": "The question."},
                ),
                **generation_widgets(),
            },
            "optional": {
                "image": (
                    "IMAGE",
                    {"tooltip": "The picture; a batch is several pictures of one question."},
                ),
                "pruning": (PRUNING, {"tooltip": PRUNING_TIP}),
                "history": (HISTORY, {"tooltip": "What was said before, from another TOPS Ask."}),
                "image_2": ("IMAGE", {"tooltip": more}),
                "image_3": ("IMAGE", {"tooltip": more}),
                "system": (
                    "STRING",
                    {"default": "", "multiline": True, "tooltip": "Instruction before the conversation; may be empty."},
                ),
                **advanced(sampling_widgets()),
                "keeps": (
                    "STRING",
                    {
                        "default": "",
                        "advanced": True,
                        "tooltip": "Budgets of single pictures, in their order, separated by commas, in place of keep "
                        "of TOPS Pruning: 1.0, 0.1, 64. Nothing between commas leaves a picture to TOPS Pruning.",
                    },
                ),
                "thinking": THINKING,
                "preset": preset_widget(),
                "unload": UNLOAD,
                **growing_pictures(first=4),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        prompt: str | None = None,
        image: object = UNLINKED,
        image_2: object = UNLINKED,
        image_3: object = UNLINKED,
        images: dict[str, None] | None = None,
    ) -> bool | str:
        # The host gives None for what is linked. A picture without a text is a question.
        has_picture = any(socket is not UNLINKED for socket in (image, image_2, image_3)) or bool(images)
        if prompt is not None and not prompt.strip() and not has_picture:
            return refusal("The prompt is empty; ask something, or give a picture.")
        return True

    @classmethod
    def IS_CHANGED(cls, seed: int | None = 0, temperature: float | None = 0.0, **_: Any) -> float:
        return seed_change(seed, temperature)

    def ask(
        self,
        model: NodeModel,
        prompt: str | None,
        max_tokens: int,
        temperature: float,
        seed: int,
        image: Tensor | None = None,
        pruning: Pruning | None = None,
        history: History | None = None,
        image_2: Tensor | None = None,
        image_3: Tensor | None = None,
        system: str = "",
        keeps: str | None = "",
        preset: str = NO_PRESET,
        unload: bool = False,
        images: dict[str, Tensor] | None = None,
        **sampling: Any,
    ) -> dict[str, Any]:
        pictures = all_pictures({"image": image, "image_2": image_2, "image_3": image_3}, images)
        before = expect_history(history)
        own = read_keeps(keeps)
        if len(own) > len(pictures):
            raise InvalidInput(f"keeps has {len(own)} budgets for {len(pictures)} pictures; give one for each at most.")
        question = user_message(
            preset_prompt(preset, prompt), *pictures, keep=own + [None] * (len(pictures) - len(own))
        )
        messages = [*beginning(system, before), question]
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, **sampling}
        generation = Generation(**settings_from(Generation, options))
        handle = expect_model(model)
        with freed_if(unload, handle):
            answer = ask_streaming(handle, Request(messages, pruning_for(handle, pruning), generation))
        stats = Stats((answer,))
        now = History((*messages, {"role": "assistant", "content": answer.text}))
        result = (answer.text, map_of(answer), now, stats, str(stats), answer.reasoning)
        return {"ui": {"text": [answer.text], "notes": notes(handle, pictures, pruning)}, "result": result}


def read_keeps(text: str | None) -> list[Keep | None]:
    """Return the budgets of single pictures from their widget; None for a picture without one.

    Raises
    ------
    InvalidInput
        If one of them is not a budget.
    """
    words = [word.strip() for word in text.split(",")] if text and text.strip() else []
    return [own_keep({"keep": word}) if word else None for word in words]


def beginning(system: str | None, before: History) -> list[dict[str, Any]]:
    """Return what comes before the question: the conversation so far, or the system instruction of a new one."""
    if not system or not system.strip():
        return list(before.messages)
    if before.messages:
        raise InvalidInput("The system instruction belongs to the conversation's first TOPS Ask; leave it empty here.")
    return [{"role": "system", "content": system}]

"""TOPS Video Ask."""

from typing import Any

from torch import Tensor

from tops_engine.contract import Request
from tops_engine.conversation.messages import user_message, video_message
from tops_engine.errors import InvalidVideo
from tops_engine.media.videos import DEFAULT_FRAMES, MAX_FRAMES, Video, evenly
from tops_engine.settings import Generation, Pruning

from .asking import REASONING_TIP, THINKING, UNLOAD, ask_streaming, generation_widgets, map_of, seed_change
from .models import NodeModel, freed_if
from .notes import notes
from .pictures import to_pictures
from .sockets import MODEL, PRUNING, PRUNING_TIP, STATS, Stats, expect_model, pruning_for
from .widgets import settings_from


class VideoAsk:
    """Ask a question about a video."""

    NODE_ID = "TOPSVideoAsk"
    TITLE = "TOPS Video Ask (video to text)"
    CATEGORY = "TOPS"
    DESCRIPTION = (
        "Asks about a video, taking frames evenly over its whole length. A model that does not know videos gets the "
        "frames as pictures of one question."
    )
    SEARCH_ALIASES = ["video caption", "describe video", "frames", "clip", "vlm", "video to text", "vqa", "chat"]
    RETURN_TYPES = ("STRING", "IMAGE", STATS, "STRING", "STRING")
    RETURN_NAMES = ("answer", "token_map", "stats", "stats_text", "reasoning")
    OUTPUT_TOOLTIPS = (
        "The answer.",
        "Frames beside what was kept of them at each stage.",
        "Everything measured, for TOPS Token Map.",
        "Tokens, times and FLOPs in words.",
        REASONING_TIP,
    )
    FUNCTION = "ask"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        rate = {"default": 8.0, "min": 0.01, "max": 1000.0, "step": 0.1, "round": 0.001}
        return {
            "required": {
                "model": (MODEL, {"tooltip": "From TOPS Load Model."}),
                "video": ("IMAGE,VIDEO", {"tooltip": "Frames as an IMAGE batch, or a VIDEO."}),
                "prompt": (
                    "STRING",
                    {"default": "What happens in this video?", "multiline": True, "tooltip": "The question."},
                ),
                "num_frames": (
                    "INT",
                    {
                        "default": DEFAULT_FRAMES,
                        "min": 1,
                        "max": MAX_FRAMES,
                        "tooltip": "Frames to show the model, at most; taken evenly over the whole.",
                    },
                ),
                "fps": (
                    "FLOAT",
                    rate
                    | {
                        "tooltip": "Frames a second of an IMAGE batch, for the times models see; a VIDEO knows its own."
                    },
                ),
                **generation_widgets(),
            },
            "optional": {
                "pruning": (PRUNING, {"tooltip": PRUNING_TIP}),
                "thinking": THINKING,
                "unload": UNLOAD,
            },
        }

    @classmethod
    def IS_CHANGED(cls, seed: int | None = 0, temperature: float | None = 0.0, **_: Any) -> float:
        return seed_change(seed, temperature)

    def ask(
        self,
        model: NodeModel,
        video: Any,
        prompt: str | None,
        num_frames: int,
        fps: float,
        max_tokens: int,
        temperature: float,
        seed: int,
        pruning: Pruning | None = None,
        thinking: str | None = "",
        unload: bool = False,
    ) -> dict[str, Any]:
        frames, rate = _frames(video, fps)
        clip = _clip(frames, rate, num_frames)
        handle = expect_model(model)
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "thinking": thinking}
        generation = Generation(**settings_from(Generation, options))
        with freed_if(unload, handle):
            takes_videos = handle.takes_videos(max_tokens)
            message = video_message(prompt, clip) if takes_videos else user_message(prompt, *clip.frames)
            answer = ask_streaming(handle, Request([message], pruning_for(handle, pruning), generation))
        stats = Stats((answer,))
        result = (answer.text, map_of(answer), stats, str(stats), answer.reasoning)
        return {"ui": {"text": [answer.text], "notes": notes(handle, clip.frames, pruning)}, "result": result}


def _frames(video: Any, fps: float) -> tuple[Tensor, float]:
    """Return the IMAGE batch and the frames per second of an IMAGE or VIDEO."""
    if isinstance(video, Tensor):
        return video, fps
    if not hasattr(video, "get_components"):
        raise InvalidVideo(f"The input 'video' expects an IMAGE batch or a VIDEO, not a {type(video).__name__}.")
    components = video.get_components()
    return components.images, float(components.frame_rate)


def _clip(frames: Tensor, rate: float, num_frames: int) -> Video:
    total = len(frames)
    places = evenly(total, num_frames)
    pictures = [picture.convert("RGB") for picture in to_pictures(frames[places], "video")]
    return Video(pictures, [place / rate for place in places], total, total / rate)

"""SmolVLM2: Idefics3 for pictures; each frame of a video is one tile, behind its time."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AddedToken
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE
from transformers.video_processing_utils import BaseVideoProcessor

from tops_engine.conversation.messages import Conversation
from tops_engine.dependencies import unsupported_version
from tops_engine.families.chat_text import chat_text
from tops_engine.families.idefics3 import Idefics3
from tops_engine.families.parts.frame_processor import RESAMPLING, normalize, resize
from tops_engine.families.prompt import Prompt, tiles_in_prompt_order
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.media.videos import Video

VIDEO_TOKEN = "<video>"

#: The filter of Pillow's number 1. Like transformers, torch before 2.12 has bicubic instead.
LANCZOS = {1: "bicubic" if unsupported_version("torch>=2.12") else "lanczos"}

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()


class SmolVLM(Idefics3):
    """``SmolVLMForConditionalGeneration``: HuggingFaceTB/SmolVLM2-2.2B-Instruct and the other sizes.

    A question about a video is written in the chat template that transformers uses for videos.
    """

    model_types = ("smolvlm",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "smolvlm": (
            "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
            "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        ),
    }
    takes_videos = True

    def __init__(self, model: Any, processor: Any) -> None:
        # The model has no token for videos. Their placeholder becomes that of pictures in :meth:`prepare`.
        processor.tokenizer.add_tokens([AddedToken(VIDEO_TOKEN, special=True)])
        model.config.video_token_id = processor.tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        super().__init__(model, processor)

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        processor.frame_settings, _ = BaseVideoProcessor.get_video_processor_dict(source, revision=revision or "main")
        return processor

    def text_of(self, conversation: Conversation) -> str:
        if not conversation.videos:
            return super().text_of(conversation)
        processor = copy(self.processor)
        processor.chat_template = DEFAULT_CHAT_TEMPLATE
        return chat_text(processor, conversation, None, self.reserved_tokens)

    def prepare(self, conversation: Conversation) -> Prompt:
        prompt = super().prepare(conversation)
        if not prompt.videos:
            return prompt
        config, pixels = self.model.config, prompt.pixels
        pictures = pixels["pixel_values"][0] if prompt.images else torch.empty(0)
        tiles = tiles_in_prompt_order(prompt.spans, self.side**2, pictures, pixels["pixel_values_videos"])
        input_ids = prompt.input_ids.masked_fill(prompt.input_ids == config.video_token_id, config.image_token_id)
        return replace(prompt, input_ids=input_ids, pixels={"pixel_values": tiles[None]})

    def read_videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        frames = [self._pixels_of(frame) for video in videos for frame in video.frames]
        return {"pixel_values_videos": torch.stack(frames)}

    def video_layouts(self, videos: Sequence[Video], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        grid = (self.side, self.side)
        return [frame_layout(len(video.frames), grid_boxes(*grid), grid) for video in videos]

    def video_text(self, video: Video, _layout: VisualLayout) -> str:
        """Return the number of frames and the duration, and then each frame behind its minute and second."""
        processor = self.processor
        tokens = f"{processor.global_image_tag}{str(self.video_token) * self.side**2}"
        frame = f"{processor.fake_image_token}{tokens}{processor.fake_image_token}"
        length = timedelta(seconds=int(video.duration))
        intro = (
            f"You are provided the following series of {in_words(len(video.frames))} frames from a {length} [H:MM:SS] "
            "video.\n"
        )
        frames = (f"\nFrame from {int(time // 60):02d}:{int(time % 60):02d}:{frame}" for time in video.timestamps)
        return f"{intro}{''.join(frames)}\n\n"

    def _pixels_of(self, frame: Image.Image) -> Tensor:
        """Return the pixels of a frame, float32 [3, side, side].

        It is scaled to the longest side of videos, and from there to a square.
        """
        settings, pictures = self.processor.frame_settings, self.processor.image_processor
        size = (settings.get("video_sampling") or {}).get("video_size") or settings.get("size") or pictures.size
        square = (settings.get("max_image_size") or pictures.max_image_size)["longest_edge"]
        resample = (RESAMPLING | LANCZOS)[int(settings.get("resample") or pictures.resample)]
        pixels = torch.from_numpy(np.array(frame.convert("RGB"))).permute(2, 0, 1).contiguous()
        pixels = resize(pixels, _with_longest_side(frame.height, frame.width, size["longest_edge"]), resample)
        pixels = resize(pixels, (square, square), resample)
        return normalize(pixels, pictures.image_mean, pictures.image_std, pictures.rescale_factor)


def in_words(number: int) -> str:
    """Return a number below 1,000 in English words, as the package num2words writes it."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f"-{ONES[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{ONES[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")


def _with_longest_side(height: int, width: int, longest: int) -> tuple[int, int]:
    """Return height and width with that longest side; the other one is rounded down, and then up to an even number."""
    if width >= height:
        other = int(longest / (width / height))
        return max(1, other + other % 2), longest
    other = int(longest * (width / height))
    return longest, max(1, other + other % 2)

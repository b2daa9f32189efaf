"""How a family writes a conversation as the tokens of a prompt, with places for its pictures and videos."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from tops_engine.conversation.messages import Conversation
from tops_engine.conversation.tool_formats import ToolFormat, format_of
from tops_engine.errors import UnsupportedModel
from tops_engine.families.chat_text import chat_template, chat_text, turn_tokens
from tops_engine.families.decoder import Decoder
from tops_engine.families.picture_sizes import PictureSizes
from tops_engine.families.prompt import (
    Prompt,
    check_placeholders,
    in_prompt_order,
    replace_placeholders,
    split_positions,
    tokenize,
)
from tops_engine.media.layout import VisualLayout, VisualSpan
from tops_engine.media.videos import Video


class PromptWriter(PictureSizes, ABC):
    """The part of a family that turns a conversation into a prompt.

    A family says where the visual tokens lie in a picture (:meth:`layouts`) and, if it takes videos, how these are read
    (:meth:`read_videos`, :meth:`video_layouts`). The rest is overridden where a processor has habits of its own.
    """

    #: Whether the model answers questions about videos.
    takes_videos: ClassVar[bool] = False

    #: The chat template of checkpoints that are published without one.
    default_chat_template: ClassVar[str | None] = None

    model: Any
    processor: Any
    decoder: Decoder

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def chat_template(self) -> str:
        """The checkpoint's chat template, or else the family's."""
        return chat_template(self.processor, self.default_chat_template)

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes function calls."""
        return format_of(self.chat_template, self.tokenizer.get_added_vocab())

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer: those of the generation config, or else the tokenizer's."""
        ids = self.model.generation_config.eos_token_id
        ids = ids if ids is not None else self.tokenizer.eos_token_id
        return frozenset([ids] if isinstance(ids, int) else ids or [])

    def prepare(self, conversation: Conversation) -> Prompt:
        """Write the conversation in the checkpoint's chat template and expand its pictures and videos to tokens.

        Raises
        ------
        InvalidInput
            If the template does not take the conversation, or if placeholders and pictures differ in number.
        InvalidImage
            If the image processor refuses a picture.
        UnsupportedModel
            If there is a video and the model does not take videos.
        """
        if conversation.videos and not self.takes_videos:
            raise UnsupportedModel("This model does not take videos; give it frames as pictures, or use another model.")
        images, videos = [self.bounded(image) for image in conversation.images], conversation.videos
        sizes = [image.size for image in conversation.images]
        text = self.text_of(conversation)
        check_placeholders(text, self.processor.image_token, len(images), "pictures")
        if self.video_token is not None:
            check_placeholders(text, self.video_token, len(videos), "videos")
        pixels = self.read_videos(videos) if videos else {}
        video_layouts = self.video_layouts(videos, pixels) if videos else []
        if videos:
            text = replace_placeholders(text, str(self.video_token), map(self.video_text, videos, video_layouts))
        input_ids, processed = tokenize(self.processor, text, images, self.for_processor(images))
        pixels |= processed
        spans = self._spans(input_ids, self.layouts(images, pixels), video_layouts)
        positions = self.position_ids(input_ids, pixels)
        digests = self._pictures.digests(images)
        keeps = in_prompt_order(spans, conversation.image_keeps, conversation.video_keeps)
        question, continued = conversation.question, conversation.continued_text
        return Prompt(input_ids, positions, spans, pixels, images, digests, question, videos, keeps, continued, sizes)

    def text_of(self, conversation: Conversation) -> str:
        """Write the conversation in the chat template, with one placeholder for each picture and video."""
        return chat_text(self.processor, conversation, self.default_chat_template, self.reserved_tokens)

    @cached_property
    def reserved_tokens(self) -> set[str]:
        """The tokens that no text of a conversation may hold: placeholders, and what begins or ends a turn."""
        template = chat_template(self.processor, self.default_chat_template)
        return self.placeholders | turn_tokens(self.tokenizer, template, self.eos_token_ids)

    @property
    def placeholders(self) -> set[str]:
        """The tokens that stand for pictures and videos in a prompt, as text."""
        names = ("image_token", "video_token", "boi_token", "fake_image_token", "global_image_tag")
        tokens = {getattr(self.processor, name, None) for name in names} | {self.video_token}
        tokens.add(self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id))
        return {str(token) for token in tokens if token}

    def for_processor(self, images: Sequence[Image.Image]) -> Sequence[Any]:
        """Return the pictures of one conversation as the processor takes them."""
        return images

    def position_ids(self, input_ids: Tensor, pixels: dict[str, Tensor]) -> Tensor:
        """Return the positions that the rotary embedding gives the tokens of a prompt: int64 [position_axes, N]."""
        return torch.arange(len(input_ids)).expand(self.decoder.position_axes, -1)

    @abstractmethod
    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        """Return where each picture's visual tokens lie in it, in prompt order."""

    @property
    def video_token(self) -> str | None:
        """The text of a video's placeholder and of each of its visual tokens; None if the model has no such token."""
        token_id = getattr(self.model.config, "video_token_id", None)
        return None if token_id is None else str(self.tokenizer.convert_ids_to_tokens(token_id))

    def read_videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        """Return what the model's forward takes for videos, whose frames are already sampled."""
        raise NotImplementedError

    def video_layouts(self, videos: Sequence[Video], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        """Return where each video's visual tokens lie in its frames, in prompt order.

        Parameters
        ----------
        pixels : what :meth:`read_videos` returned for these videos.
        """
        raise NotImplementedError

    def video_text(self, _video: Video, layout: VisualLayout) -> str:
        """Return the text that replaces a video's placeholder: one video token for each visual token."""
        return str(self.video_token) * layout.num_tokens

    def _spans(
        self, input_ids: Tensor, images: Sequence[VisualLayout], videos: Sequence[VisualLayout]
    ) -> list[VisualSpan]:
        """Return the spans of pictures and videos, in the order of the prompt."""
        spans = split_positions(input_ids, self.model.config.image_token_id, images, "image")
        if videos:
            spans += split_positions(input_ids, self.model.config.video_token_id, videos, "video")
        return sorted(spans, key=lambda span: int(span.positions[0]))

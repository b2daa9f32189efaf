"""A conversation as a model reads it: the text of its chat template, and the places of pictures in its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tops_engine.conversation.messages import Conversation
from tops_engine.conversation.tools import for_template, images_after_results, knows_tools, without_tools
from tops_engine.errors import InvalidInput, UnsupportedModel
from tops_engine.media.layout import VisualLayout, VisualSpan
from tops_engine.media.videos import Video


@dataclass(frozen=True)
class Prompt:
    """One conversation, ready for the model.

    Attributes
    ----------
    input_ids : int64 [N] on the CPU, every picture and video expanded to its placeholder tokens.
    position_ids : int64 [1, N] on the CPU, or [3, N] (time, row, column) where the model numbers pictures in 3-D.
    spans : where each picture's and video's tokens lie, in the order of the prompt.
    pixels : what the image and video processors made, on the CPU.
    images, videos : the pictures and videos themselves.
    image_digests : a fingerprint of each picture's content.
    question : the text of the last message.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: list[VisualSpan]
    pixels: dict[str, Tensor]
    images: list[Image.Image]
    image_digests: list[bytes]
    question: str = ""
    videos: list[Video] = field(default_factory=list)

    @property
    def visuals(self) -> list[Image.Image | Video]:
        """The pictures and videos in the order of ``spans``."""
        images, videos = iter(self.images), iter(self.videos)
        return [next(images) if span.layout.frame is None else next(videos) for span in self.spans]


def chat_text(processor: Any, conversation: Conversation, default_template: str | None) -> str:
    """The conversation in the checkpoint's chat template, or in another where it ships without one.

    Raises
    ------
    InvalidInput
        If the template does not take it.
    UnsupportedModel
        If there is none.
    """
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template or default_template
    if template is None:
        raise UnsupportedModel("The checkpoint has no chat template; use an instruction-tuned one.")
    messages, functions = conversation.messages, conversation.functions
    if not functions and not any("tool_calls" in message for message in messages):
        return _filled(processor, template, messages)
    if not knows_tools(template):
        return _filled(processor, template, without_tools(messages, functions))
    text = _filled(processor, template, for_template(messages), tools=functions or None)
    if text.count(processor.image_token) < len(conversation.images):
        moved = for_template(images_after_results(messages))
        text = _filled(processor, template, moved, tools=functions or None)
    return text


def _filled(processor: Any, template: str, messages: Sequence[dict[str, Any]], **options: Any) -> str:
    try:
        text = processor.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False, **options
        )
    except Exception as error:  # jinja2 raises its own TemplateError for e.g. a role order the template refuses
        raise InvalidInput(f"The model's chat template does not take this conversation: {error}.") from error
    return str(text)


def check_placeholders(text: str, token: str, count: int, what: str) -> None:
    """Make sure that a text holds one placeholder for each picture (or video).

    Raises
    ------
    InvalidInput
        If there are more or fewer.
    """
    if text.count(token) != count:
        raise InvalidInput(
            f"The prompt holds {text.count(token)} placeholders ({token}) for {count} {what}; "
            f"the text itself must not contain {token}, and the model's chat template must take {what}."
        )


def split_positions(input_ids: Tensor, token_id: int, layouts: Sequence[VisualLayout], what: str) -> list[VisualSpan]:
    """Where the tokens of each picture (or video) lie in a prompt, int64 [N], that has ``token_id`` in their places.

    Raises
    ------
    InvalidInput
        If there are more or fewer than the layouts have.
    """
    positions = (input_ids == token_id).nonzero().flatten()
    counts = [layout.num_tokens for layout in layouts]
    if sum(counts) != len(positions):
        raise InvalidInput(
            f"The processor made {len(positions)} {what} tokens but the model makes {sum(counts)}; "
            "the checkpoint's processor config does not fit its model."
        )
    pieces = torch.split(positions, counts) if counts else ()
    return [VisualSpan(piece, layout) for piece, layout in zip(pieces, layouts, strict=True)]

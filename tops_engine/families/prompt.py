"""A conversation as a model reads it: the text of its chat template, and the positions of pictures in its tokens."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from tops_engine.budget import Keep
from tops_engine.conversation.messages import ROLES, Conversation, alternating, is_continued
from tops_engine.conversation.thinking import SWITCH, has_switch
from tops_engine.conversation.tool_formats import format_of
from tops_engine.conversation.tools import (
    RESPONSE_BEGIN,
    RESPONSE_END,
    for_template,
    images_after_results,
    knows_tools,
    without_tools,
)
from tops_engine.errors import InvalidImage, InvalidInput, UnsupportedModel, reason_of, shorten
from tops_engine.media.layout import VisualLayout, VisualSpan
from tops_engine.media.videos import Video

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Prompt:
    """One conversation, ready for the model.

    Attributes
    ----------
    input_ids : int64 [N] on the CPU, with every picture and video expanded to its placeholder tokens.
    position_ids : int64 [1, N] on the CPU, or [3, N] (time, row, column) if the model numbers pictures in 3-D.
    spans : which tokens are those of each picture and video, in the order of the prompt.
    pixels : the tensors that the image and video processors made, on the CPU.
    images, videos : the pictures, scaled to the bounds of ``Family.bound_pixels``, and the videos.
    keeps : the own budget of each picture and video, in the order of ``spans``; None is that of the pruning.
    image_digests : a fingerprint of each picture's content.
    question : the text of the user's last message that has text.
    continued_text : the text of the assistant that the prompt ends within and that the answer continues; or empty.
    sizes : width and height of each picture as it was given, in pixels.
    unresized_tokens : the visual tokens of each picture before it was made smaller to meet a budget; empty if none was.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: list[VisualSpan]
    pixels: dict[str, Tensor]
    images: list[Image.Image]
    image_digests: list[bytes]
    question: str = ""
    videos: list[Video] = field(default_factory=list)
    keeps: list[Keep | None] = field(default_factory=list)
    continued_text: str = ""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    unresized_tokens: list[int] = field(default_factory=list)

    @property
    def continues(self) -> bool:
        """Whether the prompt ends within a text of the assistant, which the answer continues."""
        return bool(self.continued_text)

    @property
    def visual_tokens(self) -> list[int]:
        """The visual tokens of each picture and video as the model takes it by itself, in the order of ``spans``."""
        return self.unresized_tokens or [span.layout.num_tokens for span in self.spans]

    @property
    def continued(self) -> list[int] | None:
        """The last tokens of the text that the answer continues, enough to decode what follows; None without one."""
        return self.input_ids[-16:].tolist() if self.continues else None

    @property
    def visuals(self) -> list[Image.Image | Video]:
        """The pictures and videos in the order of ``spans``."""
        return in_prompt_order(self.spans, self.images, self.videos)


def in_prompt_order(spans: Sequence[VisualSpan], of_images: Sequence[T], of_videos: Sequence[U]) -> list[T | U]:
    """Return what belongs to each picture and to each video in the order of ``spans``."""
    images, videos = iter(of_images), iter(of_videos)
    return [next(images) if span.layout.frame is None else next(videos) for span in spans]


#: Marks of a turn that are text to some tokenizers, such as that of Mistral 7B.
TURN_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def chat_template(processor: Any, default: str | None) -> str:
    """Return the chat template of a checkpoint, or the default if it has none.

    Raises
    ------
    UnsupportedModel
        If there is neither.
    """
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template or default
    if template is None:
        raise UnsupportedModel("The checkpoint has no chat template; use an instruction-tuned one.")
    return str(template)


def turn_tokens(tokenizer: Any, template: str, ends: Iterable[int]) -> set[str]:
    """Return the tokens that begin or end a turn or a prompt, as text.

    They are the special tokens that the chat template writes, those of the roles, the tokenizer's own for beginning,
    end, padding and unknown characters, and those that end an answer. Special tokens that describe places in a picture,
    such as Qwen2-VL's ``<|box_start|>``, are none of these: users write them.

    Parameters
    ----------
    ends : ids of the tokens that end an answer.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    roles = {f"<|{role}|>" for role in ROLES}
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    named = {getattr(tokenizer, name) for name in names} | set(tokenizer.convert_ids_to_tokens(sorted(ends)))
    marks = {mark for mark in TURN_MARKS if mark in template}
    found = {token for token in special if token in template or token in roles} | named | marks
    return {token for token in found if token and token.strip()[1:]}


def chat_text(
    processor: Any, conversation: Conversation, default_template: str | None, reserved: Iterable[str] = ()
) -> str:
    """Write the conversation in the checkpoint's chat template, or in ``default_template`` if it has none.

    If the template refuses several messages of one role in a row, they are written as one message. A last message that
    is to be continued ends the text, as ``continue_final_message`` of transformers' chat templates defines it.

    Parameters
    ----------
    reserved : tokens that stand for pictures and videos, and tokens that begin or end a turn. Where a text, a tool's
        result or a function holds one, a space goes after its first character, so that it stays text: ``< image>``.
        A result may not end itself, either: ``< /tool_response>``.

    Raises
    ------
    InvalidInput
        If the template does not take the conversation.
    UnsupportedModel
        If there is no template, or if the conversation says whether to think and the template has no switch for it.
    """
    template = chat_template(processor, default_template)
    if conversation.thinking is not None and not has_switch(template):
        raise UnsupportedModel(
            "The model's chat template has no switch for thinking; leave thinking unset, or use another checkpoint."
        )
    tokens = sorted(reserved, key=len, reverse=True)
    tool_format = format_of(template, processor.tokenizer.get_added_vocab())
    of_results = list(dict.fromkeys([*tokens, RESPONSE_BEGIN, RESPONSE_END, *tool_format.result_marks]))
    messages = [
        _without_tokens(message, of_results if message["role"] == "tool" else tokens)
        for message in conversation.messages
    ]
    read = replace(conversation, messages=messages, functions=_without_tokens(conversation.functions, tokens))
    try:
        return _written(processor, template, read)
    except InvalidInput:
        taking_turns = alternating(messages, conversation.partial)
        if len(taking_turns) == len(messages):
            raise
        return _written(processor, template, replace(read, messages=taking_turns))


def _written(processor: Any, template: str, conversation: Conversation) -> str:
    """Write messages and functions in a template, in the form that the template knows."""
    messages, functions = conversation.messages, conversation.functions
    switch: dict[str, Any] = {} if conversation.thinking is None else {SWITCH: conversation.thinking}
    continues = is_continued(messages[-1])

    def fill(turns: Sequence[dict[str, Any]], **options: Any) -> str:
        return _filled(processor, template, continues, turns, **switch | options)

    if not functions and not any("tool_calls" in message or message["role"] == "tool" for message in messages):
        return fill(messages)
    tool_format = format_of(template, processor.tokenizer.get_added_vocab())
    if not knows_tools(template, tool_format):
        return fill(without_tools(messages, functions, tool_format))

    def fill_natively(turns: Sequence[dict[str, Any]]) -> str:
        return fill(for_template(turns, template, tool_format), tools=functions or None)

    if not any(
        part["type"] != "text" for message in messages if message["role"] == "tool" for part in message["content"]
    ):
        return fill_natively(messages)
    try:
        text = fill_natively(messages)
    except InvalidInput:
        return fill_natively(images_after_results(messages))
    # Some templates drop the pictures of results without a word.
    is_whole = text.count(processor.image_token) >= len(conversation.images)
    return text if is_whole else fill_natively(images_after_results(messages))


def _filled(processor: Any, template: str, continues: bool, messages: Sequence[dict[str, Any]], **options: Any) -> str:
    try:
        text = processor.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            tokenize=False,
            **options,
        )
    except Exception as error:  # jinja2 raises its own TemplateError, for example for roles in a refused order
        raise InvalidInput(f"The model's chat template does not take this conversation: {reason_of(error)}.") from error
    return str(text)


def _without_tokens(value: Any, tokens: Sequence[str]) -> Any:
    """Return JSON-like data in which no text holds one of the tokens."""
    if isinstance(value, str):
        for token in tokens:
            value = value.replace(token, f"{token[0]} {token[1:]}")
        return value
    if isinstance(value, Mapping):
        return {_without_tokens(key, tokens): _without_tokens(part, tokens) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tokens(part, tokens) for part in value]
    return value


def check_placeholders(text: str, token: str, count: int, what: str) -> None:
    """Require one placeholder in a text for each picture (or video).

    Raises
    ------
    InvalidInput
        If there are more or fewer.
    """
    if text.count(token) != count:
        raise InvalidInput(
            f"The prompt holds {text.count(token)} placeholders ({token}) for {count} {what}; "
            "the model's chat template has to write one for each, so use another checkpoint or template."
        )


def replace_placeholders(text: str, token: str, replacements: Iterable[str]) -> str:
    """Replace each occurrence of ``token`` in a text, in order; there are as many replacements."""
    first, *others = text.split(token)
    return first + "".join(part for pair in zip(replacements, others, strict=True) for part in pair)


def tokenize(
    processor: Any, text: str, images: Sequence[Image.Image], nested: Sequence[Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a processor on one prompt.

    Parameters
    ----------
    images : the pictures of the prompt.
    nested : the same, as the processor takes them.

    Returns
    -------
    Token ids, int64 [N] on the CPU, and the tensors that the processor made of the pictures.

    Raises
    ------
    InvalidImage
        If the processor refuses the pictures.
    """
    bos = processor.tokenizer.bos_token
    try:
        inputs = processor(
            text=[text],
            images=nested or None,
            return_tensors="pt",
            add_special_tokens=bos is None or not text.startswith(bos),
        )
    except (ValueError, ZeroDivisionError) as error:
        sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
        raise InvalidImage(
            f"The model's image processor refuses the pictures ({shorten(sizes)}): {reason_of(error)}."
        ) from error
    input_ids = inputs.pop("input_ids")[0]
    inputs.pop("attention_mask", None)
    return input_ids, {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def split_positions(input_ids: Tensor, token_id: int, layouts: Sequence[VisualLayout], what: str) -> list[VisualSpan]:
    """Find the tokens of each picture (or video) in a prompt.

    Parameters
    ----------
    input_ids : int64 [N], with ``token_id`` in the place of each visual token.
    layouts : of the pictures (or videos), in the order of the prompt.
    what : "image" or "video", for the error message.

    Raises
    ------
    InvalidInput
        If the prompt has more or fewer such tokens than the layouts.
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


def tiles_in_prompt_order(
    spans: Sequence[VisualSpan], tokens_per_tile: int, pictures: Iterable[Tensor], frames: Iterable[Tensor]
) -> Tensor:
    """Join the tiles of pictures and the frames of videos for a model that takes both in one tensor.

    Parameters
    ----------
    tokens_per_tile : of a tile, and of a frame.
    pictures, frames : [3, height, width] each, of all pictures and of all videos.

    Returns
    -------
    [tiles, 3, height, width], in the order of ``spans``.
    """
    tiles, shots = iter(pictures), iter(frames)
    return torch.stack(
        [
            next(tiles if span.layout.frame is None else shots)
            for span in spans
            for _ in range(span.layout.num_tokens // tokens_per_tile)
        ]
    )


def split_rows(rows: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Split rows of all visual tokens of prompts, [n, c], into those of each picture and video."""
    return list(torch.split(rows, [span.layout.num_tokens for prompt in prompts for span in prompt.spans]))

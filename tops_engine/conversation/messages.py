"""Conversations: the forms that callers may write, and the one form that the families read."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tops_engine.budget import Keep, read_keep
from tops_engine.conversation.tools import Tools
from tops_engine.errors import InvalidInput, quote
from tops_engine.media.images import ImageSource, open_image
from tops_engine.media.videos import Video, VideoSource, open_video
from tops_engine.text import valid_text, with_valid_texts

Message = Mapping[str, Any]

#: Functions that get a picture or video of a conversation: its source, num_frames and fps of a video, its own budget.
TakeImage = Callable[[ImageSource, Keep | None], None]
TakeVideo = Callable[[VideoSource, int | None, float | None, Keep | None], None]

ROLES = ("system", "user", "assistant", "tool")

# Methods that read the question read this text where the user wrote none.
DEFAULT_QUESTION = "Describe this picture."


@dataclass(frozen=True)
class Conversation:
    """Messages in the form that chat templates read, and their pictures and videos in order.

    Attributes
    ----------
    messages : each ``{"role": ..., "content": [{"type": "text", "text": ...} | {"type": "image" or "video"}, ...]}``;
        an assistant's may have ``tool_calls``.
    images : RGB, one for each image part.
    videos : one for each video part.
    functions : what the model may call, as in :class:`tops_engine.conversation.tools.Tools`.
    partial : whether this may be a part of a conversation, read to count its tokens.
    image_keeps, video_keeps : the own budget of each picture and video; None is the budget of the pruning.
    thinking : what the switch of the chat template is set to; None leaves it to the template.
    """

    messages: list[dict[str, Any]]
    images: list[Image.Image]
    videos: list[Video] = field(default_factory=list)
    functions: list[dict[str, Any]] = field(default_factory=list)
    partial: bool = False
    image_keeps: list[Keep | None] = field(default_factory=list)
    video_keeps: list[Keep | None] = field(default_factory=list)
    thinking: bool | None = None

    @property
    def continued_text(self) -> str:
        """The text of the last message if it is the assistant's: the model continues it instead of answering."""
        last = self.messages[-1] if self.messages else None
        if last is None or not is_continued(last):
            return ""
        return "".join(part["text"] for part in last["content"] if part["type"] == "text")

    @property
    def question(self) -> str:
        """The text of the last message of the user that has text; ``DEFAULT_QUESTION`` if none has."""
        asked = (_text_of(message) for message in reversed(self.messages) if message["role"] == "user")
        return next(filter(None, asked), DEFAULT_QUESTION)


def is_continued(message: Mapping[str, Any]) -> bool:
    """Return whether a model continues a message, if it is the last one: an assistant's text without calls."""
    return message["role"] == "assistant" and "tool_calls" not in message and bool(_text_of(message))


def _text_of(message: Mapping[str, Any]) -> str:
    return " ".join(part["text"].strip() for part in message["content"] if part["type"] == "text").strip()


def user_message(
    text: str | None, *images: ImageSource, keep: Keep | Sequence[Keep | None] | None = None
) -> dict[str, Any]:
    """Return a question about pictures: the pictures first, then the text, which may be empty if there are pictures.

    Parameters
    ----------
    keep : the own budget of each picture, or one value for all of them; None is the budget of the pruning.

    Raises
    ------
    InvalidInput
        If there is not one budget for each picture.
    """
    keeps = list(keep) if isinstance(keep, list | tuple) else [keep] * len(images)
    if len(keeps) != len(images):
        raise InvalidInput(f"keep has {len(keeps)} budgets for {len(images)} pictures; give one for each.")
    parts = [image_part(image, own) for image, own in zip(images, keeps, strict=True)]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text or ""}]}


def image_part(image: ImageSource, keep: Any = None) -> dict[str, Any]:
    """Return a picture as a part of a message, with a budget of its own unless ``keep`` is None."""
    part = {"type": "image", "image": image}
    return part if keep is None else part | {"keep": keep}


def video_message(
    text: str | None,
    video: VideoSource,
    num_frames: int | None = None,
    fps: float | None = None,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Return a question about a video: the video first, then the text.

    Parameters
    ----------
    num_frames, fps : as for :func:`tops_engine.media.videos.open_video`.
    keep : the own budget of the video; None is the budget of the pruning.
    """
    part = {"type": "video", "video": video, "num_frames": num_frames, "fps": fps, "keep": keep}
    return {"role": "user", "content": [part, {"type": "text", "text": text or ""}]}


def read_conversation(messages: Sequence[Message], tools: Tools | None = None, partial: bool = False) -> Conversation:
    """Check a conversation and open its pictures and videos.

    The content of a message is a text, or a list of ``{"type": "text", "text": ...}``,
    ``{"type": "image", "image": path, bytes or Pillow image}`` and
    ``{"type": "video", "video": path, bytes or list of pictures, "num_frames": 16, "fps": 2.0}``, where the last two
    may be left out; :func:`tops_engine.media.videos.open_video` says what they mean. A picture or video may have a
    budget of its own, ``"keep": 0.1`` or ``"keep": 64``, in place of that of the pruning. An assistant's message may
    have ``tool_calls``, each ``{"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}``, and be
    followed by their results, ``{"role": "tool", "tool_call_id": ..., "content": ...}``. If the last message is an
    assistant's text, the model continues it. A text of None counts as no text. Surrogates in texts are joined or
    replaced, see :func:`tops_engine.text.valid_text`.

    A ``partial`` conversation, read to count its tokens, may lack what the rest of it would hold: a question, or the
    call of a tool's result. It may be empty.

    Raises
    ------
    InvalidInput
        If a role or part is unknown, if a budget is not allowed, if a tool's result answers no call, if the last
        message is from the system or has calls without results, or if nothing is asked: the last message of the user
        has no text, picture or video.
    InvalidImage
        See :func:`tops_engine.media.images.open_image`.
    InvalidVideo, MissingDependency
        See :func:`tops_engine.media.videos.open_video`.
    """
    images: list[Image.Image] = []
    videos: list[Video] = []
    image_keeps: list[Keep | None] = []
    video_keeps: list[Keep | None] = []

    def take_image(source: ImageSource, keep: Keep | None) -> None:
        images.append(open_image(source))
        image_keeps.append(keep)

    def take_video(source: VideoSource, num_frames: int | None, fps: float | None, keep: Keep | None) -> None:
        videos.append(open_video(source, num_frames, fps))
        video_keeps.append(keep)

    read = read_messages(messages, take_image, take_video, partial)
    functions = tools.told if tools else []
    return Conversation(read, images, videos, functions, partial, image_keeps, video_keeps)


def read_messages(
    messages: Sequence[Message],
    take_image: TakeImage,
    take_video: TakeVideo,
    partial: bool = False,
) -> list[dict[str, Any]]:
    """Check messages and return them in the form of :class:`Conversation`.

    Parameters
    ----------
    take_image : gets the source of each picture and its own budget, in their order.
    take_video : gets each video's source, ``num_frames``, ``fps`` and its own budget.
    partial : as for :func:`read_conversation`, which also says what is raised.
    """
    is_list = isinstance(messages, Iterable) and not isinstance(messages, Mapping | str | bytes)
    if not is_list or not (messages or partial):
        raise InvalidInput('A conversation is a list of messages, such as [{"role": "user", "content": "Hello"}].')
    read: list[dict[str, Any]] = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise InvalidInput(f"A message has the role {quote(role)}; use one of {', '.join(ROLES)}.")
        content = message.get("content")
        calls = _read_calls(message) if role == "assistant" else []
        if content is None and role == "assistant":
            content = []
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple):
            raise InvalidInput("A message's content is a text or a list of text, image and video parts.")
        read_parts = (_read_part(part, take_image, take_video) for part in parts)
        entry = {"role": role, "content": [part for part in read_parts if part is not None]}
        if calls:
            entry["tool_calls"] = calls
        if role == "tool" and not partial:
            entry |= _read_result(message, read)
        read.append(entry)
    if not partial:
        _check_question(read)
    return read


def _check_question(messages: Sequence[dict[str, Any]]) -> None:
    last = messages[-1]
    if last["role"] == "system":
        raise InvalidInput("The last message is from the system; the user has to ask something.")
    if "tool_calls" in last:
        raise InvalidInput("The last message calls functions; add a message of the role tool with each result.")
    if last["role"] == "assistant" and not is_continued(last):
        raise InvalidInput("The last message, from the assistant, has no text to continue; leave it out.")
    user = [message for message in messages if message["role"] == "user"]
    if not user or not any(part["type"] != "text" or part["text"].strip() for part in user[-1]["content"]):
        raise InvalidInput("The prompt is empty; ask something, or give a picture.")


def alternating(messages: Sequence[dict[str, Any]], partial: bool = False) -> list[dict[str, Any]]:
    """Return messages for templates that demand that user and assistant take turns.

    Messages of one role in a row become one. A ``partial`` conversation gets an empty message of the user where one is
    missing.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        last = turns[-1]["role"] if turns else None
        if message["role"] == last != "tool" and "tool_calls" not in turns[-1]:
            turns[-1] = turns[-1] | message | {"content": [*turns[-1]["content"], *message["content"]]}
            continue
        if partial and message["role"] == "assistant" and last in (None, "system"):
            turns.append({"role": "user", "content": []})
        turns.append(message)
    if partial and not any(message["role"] == "user" for message in turns):
        turns.append({"role": "user", "content": []})
    return turns


def _read_calls(message: Message) -> list[dict[str, Any]]:
    read = []
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise InvalidInput(f"The tool_calls of a message are a list, not {quote(calls)}.")
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str):
            raise InvalidInput(
                'A tool call is {"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}.'
            )
        arguments = function.get("arguments") or {}
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
        except (ValueError, TypeError):
            raise InvalidInput(f"The arguments of the call of {quote(name)} are not a JSON object.") from None
        function = with_valid_texts({"name": name, "arguments": arguments})
        read.append({"id": call.get("id"), "type": "function", "function": function})
    return read


def _read_result(message: Message, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the id and name of the call that a tool's message answers."""
    calls = [call for earlier in before for call in earlier.get("tool_calls", ())]
    wanted = message.get("tool_call_id")
    for call in reversed(calls):
        if wanted is None or call["id"] == wanted:
            return {"tool_call_id": call["id"], "name": call["function"]["name"]}
    raise InvalidInput(
        f"A tool message answers the call {quote(wanted)}, which no assistant message before it made; "
        "put the assistant's message with its tool_calls in front of it."
    )


def _read_part(
    part: Any,
    take_image: TakeImage,
    take_video: TakeVideo,
) -> dict[str, Any] | None:
    """Return a part in the form of :class:`Conversation`, None for a text part without text."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and "text" in part and part["text"] is None:
        return None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": valid_text(part["text"])}
    if kind == "image" and part.get("image") is not None:
        take_image(part["image"], own_keep(part))
        return {"type": "image"}
    if kind == "video" and part.get("video") is not None:
        take_video(part["video"], part.get("num_frames"), part.get("fps"), own_keep(part))
        return {"type": "video"}
    raise InvalidInput(
        'A content part is {"type": "text", "text": ...}, {"type": "image", "image": path, bytes or Pillow image} or '
        '{"type": "video", "video": path, bytes or list of pictures}.'
    )


def own_keep(part: Mapping[str, Any]) -> Keep | None:
    """Return the own budget of a picture or video, ``part["keep"]``, None if it has none.

    Raises
    ------
    InvalidInput
        If it is not a budget, see :func:`tops_engine.budget.read_keep`.
    """
    keep = part.get("keep")
    try:
        return None if keep is None else read_keep(keep)
    except ValueError as error:
        raise InvalidInput(f"keep={quote(keep)} of a picture or video is not allowed: {error}.") from None

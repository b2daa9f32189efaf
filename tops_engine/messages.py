"""Conversations: what callers may write, and the one form the families read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tops_engine.errors import InvalidInput
from tops_engine.images import ImageSource, open_image
from tops_engine.videos import Video, VideoSource, open_video

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """Messages in the form chat templates read, and their pictures and videos in order.

    Attributes
    ----------
    messages : each ``{"role": ..., "content": [{"type": "text", "text": ...} | {"type": "image" or "video"}, ...]}``.
    images : RGB, one for each image part.
    videos : one for each video part.
    """

    messages: list[dict[str, Any]]
    images: list[Image.Image]
    videos: list[Video] = field(default_factory=list)

    @property
    def question(self) -> str:
        """The text of the last message."""
        parts = self.messages[-1]["content"]
        return " ".join(part["text"].strip() for part in parts if part["type"] == "text")


def user_message(text: str, *images: ImageSource) -> dict[str, Any]:
    """A question about pictures: the pictures first, then the text."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def video_message(
    text: str, video: VideoSource, num_frames: int | None = None, fps: float | None = None
) -> dict[str, Any]:
    """A question about a video: the video first, then the text; see :func:`tops_engine.videos.open_video`."""
    part = {"type": "video", "video": video, "num_frames": num_frames, "fps": fps}
    return {"role": "user", "content": [part, {"type": "text", "text": text}]}


def read_conversation(messages: Sequence[Message]) -> Conversation:
    """Check a conversation and open its pictures and videos.

    A message's content is a text, or a list of ``{"type": "text", "text": ...}``,
    ``{"type": "image", "image": path, bytes or Pillow image}`` and
    ``{"type": "video", "video": path, bytes or list of pictures, "num_frames": 16, "fps": 2.0}``, where the last two
    may be left out; :func:`tops_engine.videos.open_video` says what they mean.

    Raises
    ------
    InvalidInput
        On an unknown role or part, or when nothing is asked.
    InvalidImage
        See :func:`tops_engine.images.open_image`.
    InvalidVideo, MissingDependency
        See :func:`tops_engine.videos.open_video`.
    """
    if isinstance(messages, Mapping | str) or not messages:
        raise InvalidInput('A conversation is a list of messages, such as [{"role": "user", "content": "Hello"}].')
    read: list[dict[str, Any]] = []
    images: list[Image.Image] = []
    videos: list[Video] = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise InvalidInput(f"A message has the role {role!r}; use one of {', '.join(ROLES)}.")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple):
            raise InvalidInput("A message's content is a text or a list of text, image and video parts.")
        read.append({"role": role, "content": [_read_part(part, images, videos) for part in parts]})
    last = read[-1]
    if last["role"] != "user":
        raise InvalidInput(f"The last message is from the {last['role']}; the user has to ask something.")
    if not any(part["type"] == "text" and part["text"].strip() for part in last["content"]):
        raise InvalidInput("The prompt is empty; ask something about the picture.")
    return Conversation(read, images, videos)


def _read_part(part: Any, images: list[Image.Image], videos: list[Video]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image" and part.get("image") is not None:
        images.append(open_image(part["image"]))
        return {"type": "image"}
    if kind == "video" and part.get("video") is not None:
        videos.append(open_video(part["video"], part.get("num_frames"), part.get("fps")))
        return {"type": "video"}
    raise InvalidInput(
        'A content part is {"type": "text", "text": ...}, {"type": "image", "image": path, bytes or Pillow image} or '
        '{"type": "video", "video": path, bytes or list of pictures}.'
    )

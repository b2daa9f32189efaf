"""Conversations of lmms-eval as the engine takes them."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from tops_engine.conversation.messages import Message
from tops_engine.errors import InvalidInput, quote
from tops_engine.media.images import open_image

#: The mean colour of CLIP's training pictures, with which LLaVA-1.5's own evaluation pads.
PADDING = (122, 116, 104)


def engine_messages(
    messages: Sequence[dict[str, Any]], system_prompt: str | None, pad_to_square: bool = False
) -> list[Message]:
    """Return the messages of a document for the engine.

    Parameters
    ----------
    messages : as a task's ``doc_to_messages`` makes them; pictures and videos are under ``url``.
    system_prompt : the text of a first message; it replaces that of the task.
    pad_to_square : whether pictures are padded to a square.

    Raises
    ------
    InvalidInput
        If a part is audio.
    """
    own: list[Message] = [
        {"role": one["role"], "content": [_part(part, pad_to_square) for part in one["content"]]} for one in messages
    ]
    if system_prompt is None:
        return own
    first: Message = {"role": "system", "content": [{"type": "text", "text": system_prompt}]}
    return [first, *(one for one in own if one["role"] != "system")]


def _part(part: dict[str, Any], pad_to_square: bool) -> dict[str, Any]:
    kind = part["type"]
    if kind == "image" and pad_to_square:
        picture = open_image(part["url"])
        side = max(picture.size)
        square = Image.new("RGB", (side, side), PADDING)
        # The official code rounds the border down.
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return {"type": kind, kind: square}
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind in ("image", "video"):
        return {"type": kind, kind: part["url"]}
    raise InvalidInput(f"The task has a part of type {quote(kind)}; the engine takes text, pictures and videos.")

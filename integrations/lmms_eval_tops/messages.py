"""Conversations of lmms-eval as the engine takes them."""

from collections.abc import Sequence
from typing import Any

from tops_engine.conversation.messages import Message
from tops_engine.errors import InvalidInput


def engine_messages(messages: Sequence[dict[str, Any]], system_prompt: str | None) -> list[Message]:
    """Return the messages of a document for the engine.

    Parameters
    ----------
    messages : as a task's ``doc_to_messages`` makes them; pictures and videos are under ``url``.
    system_prompt : the text of a first message; it replaces that of the task.

    Raises
    ------
    InvalidInput
        If a part is audio.
    """
    own: list[Message] = [
        {"role": one["role"], "content": [_part(part) for part in one["content"]]} for one in messages
    ]
    if system_prompt is None:
        return own
    first: Message = {"role": "system", "content": [{"type": "text", "text": system_prompt}]}
    return [first, *(one for one in own if one["role"] != "system")]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind in ("image", "video"):
        return {"type": kind, kind: part["url"]}
    raise InvalidInput(f"The task has a part of type {kind!r}; the engine takes text, pictures and videos.")

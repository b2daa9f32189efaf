"""LangChain messages as the engine reads them: text, pictures and videos in their order, calls and results."""

import base64
import io
import json
import mimetypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_openai_image_block,
    is_data_content_block,
)

from tops_engine.budget import Keep
from tops_engine.conversation.messages import own_keep
from tops_engine.errors import InvalidImage, InvalidInput, InvalidVideo, quote, reason_of
from tops_engine.media.images import ImageSource, open_image
from tops_engine.media.sources import decode_base64

Fetch = Callable[[str], bytes]
Part = dict[str, Any]

ROLES = {SystemMessage: "system", HumanMessage: "user", AIMessage: "assistant", ToolMessage: "tool"}

# Blocks of an assistant's message that are no part of what it said: its calls come from ``tool_calls``.
NOT_SAID = frozenset(
    "tool_call tool_call_chunk invalid_tool_call server_tool_call server_tool_call_chunk server_tool_result "
    "tool_use reasoning thinking redacted_thinking function_call".split()
)

# What LangChain raises for blocks that lack a key or hold values of other types.
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError)

HOW_TO_SEND = "send base64 data, a data URL, a path or image_block(...)"
HOW_TO_SEND_VIDEO = "send base64 data, a data URL or a path"


def image_block(source: ImageSource, keep: Keep | None = None) -> dict[str, Any]:
    """Return a picture as a standard content block.

    Args:
        source: A path, the bytes of a file, an open binary file, a numpy array or a Pillow image.
        keep: The own budget of the picture, in place of that of the model: the fraction (0.1) or the number (64) of
            visual tokens to keep. It is written to the ``extras`` of the block.

    Raises:
        InvalidImage: If it cannot be opened.
        InvalidInput: If the budget is not allowed.
    """
    stream = io.BytesIO()
    open_image(source).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    block = {"type": "image", "base64": data, "mime_type": "image/png"}
    return block if keep is None else block | {"extras": {"keep": own_keep({"keep": keep})}}


def engine_messages(messages: Sequence[BaseMessage], fetch: Fetch) -> list[dict[str, Any]]:
    """Convert a LangChain conversation to the engine's messages.

    Args:
        messages: System, human, AI and tool messages.
        fetch: Reads http and https addresses, or refuses to.

    Raises:
        InvalidInput: If a message or block is of a kind that no model here reads, or holds no usable data; the sentence
            says which one it is.
    """
    return [_message(message, f"message {number}", fetch) for number, message in enumerate(messages)]


def check_blocks(messages: Sequence[BaseMessage]) -> None:
    """Check that LangChain can convert the blocks of messages, which it does before it asks a chat model.

    Raises:
        InvalidInput: If it cannot; LangChain itself would raise an error of Python's, such as KeyError.
    """
    for number, message in enumerate(messages):
        if isinstance(message.content, list):
            _blocks(message, f"message {number}")
            for block in message.content:
                _check_block(block, f"message {number}")


def _check_block(block: Any, place: str) -> None:
    if not isinstance(block, dict):
        return
    source_type = block.get("source_type")
    if not isinstance(source_type, str | None):
        raise InvalidInput(f"{_capital(place)} holds a block with the source_type {quote(source_type)}; {HOW_TO_SEND}.")
    if block.get("type") == "image" and "file_id" not in block and source_type != "id":
        try:
            if is_data_content_block(block):
                convert_to_openai_image_block(block)
        except UNREADABLE as error:
            raise _unreadable(place, error) from error


def _blocks(message: BaseMessage, place: str) -> list[Any]:
    """Return the blocks of a message as LangChain converts them."""
    try:
        return list(message.content_blocks)
    except UNREADABLE as error:
        raise _unreadable(place, error) from error


def _unreadable(place: str, error: Exception) -> InvalidInput:
    why = reason_of(f"{type(error).__name__}: {error}")
    return InvalidInput(f"{_capital(place)} holds a block that LangChain cannot convert ({why}); {HOW_TO_SEND}.")


def _message(message: BaseMessage, place: str, fetch: Fetch) -> dict[str, Any]:
    role = next((role for kind, role in ROLES.items() if isinstance(message, kind)), message.type)
    if isinstance(message, ChatMessage):
        role = message.role
    if role not in ROLES.values():
        raise InvalidInput(f"{_capital(place)} is of the kind {quote(role)}; use system, human, AI and tool messages.")
    read: dict[str, Any] = {"role": role, "content": list(_parts(message, place, fetch))}
    if isinstance(message, AIMessage) and message.tool_calls:
        read["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    if isinstance(message, ToolMessage):
        read["tool_call_id"] = message.tool_call_id
    return read


def _parts(message: BaseMessage, place: str, fetch: Fetch) -> Iterator[Part]:
    if isinstance(message, ToolMessage) and (hidden := _hidden_blocks(message.content)):
        message = ToolMessage(hidden, tool_call_id=message.tool_call_id)
    if isinstance(message.content, str):
        # The same as a block, but white space is kept as it is.
        blocks: Sequence[Any] = [{"type": "text", "text": message.content}] if message.content else []
    else:
        blocks = _blocks(message, place)
    for number, block in enumerate(blocks):
        where = f"block {number} of {place}"
        try:
            part = _part(block, where, fetch)
        except (InvalidImage, InvalidVideo) as error:
            raise type(error)(f"{_capital(where)}: {error}") from error
        if part is not None:
            yield part


def _hidden_blocks(content: Any) -> list[Any] | None:
    """Return the blocks that LangChain wrote as one JSON text, as it does with any result that contains a video."""
    if not (isinstance(content, str) and content.startswith("[{") and '"type"' in content):
        return None
    try:
        blocks = json.loads(content)
    except ValueError:
        return None
    media = ("image", "image_url", "video", "video_url")
    is_media = [isinstance(block, dict) and block.get("type") in media for block in blocks]
    return blocks if any(is_media) else None


def _part(block: Any, where: str, fetch: Fetch) -> Part | None:
    if isinstance(block, Mapping) and block.get("type") == "non_standard":
        block = block.get("value")
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind in NOT_SAID:
        return None
    if kind in ("text", "text-plain", "input_text", "output_text") and "text" in block:
        if block["text"] is None:
            return None
        if isinstance(block["text"], str):
            return {"type": "text", "text": block["text"]}
    if kind in ("file", "media"):
        block, kind = _of_file(block, where)
    if kind in ("image", "image_url", "input_image"):
        return {"type": "image", "image": _source(block, fetch), **_options(block, "keep")}
    if kind in ("video", "video_url"):
        return {"type": "video", "video": _video_source(block, fetch), **_options(block, "keep", "num_frames", "fps")}
    if kind == "json":
        return {"type": "text", "text": json.dumps(block.get("json"), ensure_ascii=False)}
    raise InvalidInput(
        f"{_capital(where)} is of the type {quote(kind)}; models here read text, image and video blocks."
    )


def picture_part(block: Mapping[str, Any]) -> Part | None:
    """Return a block as a picture of the engine's messages; None if it is no picture, or holds no data by itself.

    Web addresses are not fetched.
    """

    def refuse(_address: str) -> bytes:
        raise InvalidImage("it stands at a web address.")

    try:
        part = _part(block, "a block", refuse)
    except InvalidInput:
        return None
    return part if part is not None and part["type"] == "image" else None


def _options(block: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the options of a picture or video, which stand in the block or in its extras."""
    given = {**block, **extras_of(block)}
    return {name: given[name] for name in names if given.get(name) is not None}


def extras_of(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return the extras of a block.

    LangChain's ``create_image_block(..., extras={...})`` and its like write them one level deeper than their own
    keywords; both levels count.
    """
    extras = block.get("extras")
    if not isinstance(extras, Mapping):
        return {}
    deeper = extras.get("extras")
    own = {name: value for name, value in extras.items() if name != "extras"}
    return {**deeper, **own} if isinstance(deeper, Mapping) else own


def _of_file(block: Mapping[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """Return a file block, or Google's ``media`` block, as a block of the kind that its media type says."""
    file: Mapping[str, Any] = block["file"] if isinstance(block.get("file"), Mapping) else {}
    data = block.get("base64") or block.get("data") or file.get("file_data")
    url = block.get("url") or block.get("file_uri")
    if isinstance(data, str) and data.startswith("data:"):
        data, url = None, data
    # LangChain calls every file of OpenAI's form a PDF; its name knows better.
    filename = extras_of(block).get("filename") or file.get("filename")
    named = mimetypes.guess_type(filename)[0] if isinstance(filename, str) else None
    if named is None and isinstance(url, str) and url.startswith("data:"):
        named = url.removeprefix("data:").partition(";")[0]
    media_type = str(named or block.get("mime_type") or block.get("media_type") or "unknown")
    kind = media_type.partition("/")[0]
    if kind not in ("image", "video"):
        raise InvalidInput(
            f"{_capital(where)} is a file of the media type {quote(media_type)}; models here read images and videos."
        )
    file_id = block.get("file_id") or file.get("file_id")
    given = {"base64" if isinstance(data, str) else kind: data, "url": url, "file_id": file_id}
    extras = {name: value for name, value in block.items() if name in ("extras", "keep", "num_frames", "fps")}
    return {"type": kind, **{name: value for name, value in given.items() if value}, **extras}, kind


def _video_source(block: Mapping[str, Any], fetch: Fetch) -> Any:
    """Return what the engine opens for a video, with errors of videos."""
    try:
        return _source(block, fetch, "video", HOW_TO_SEND_VIDEO)
    except InvalidImage as error:
        raise InvalidVideo(str(error)) from error


def _source(block: Mapping[str, Any], fetch: Fetch, kind: str = "image", how_to_send: str = HOW_TO_SEND) -> Any:
    """Return what the engine opens: the bytes of a file, a text (path, URL with data, base64), or what was given."""
    given = (block.get(name) for name in ("base64", "url", "image_url", "video_url", "image", "video"))
    value = next((value for value in given if not _is_empty(value)), None)
    if isinstance(value, Mapping):
        value = value.get("url")
    if block.get("file_id"):
        raise InvalidImage(f"the {kind} is given by a file id, which means nothing here; {how_to_send}.")
    if _is_empty(value):
        raise InvalidImage(f"the {kind} has no data; {how_to_send}.")
    if not isinstance(value, str):
        return value
    if block.get("base64"):
        return _decoded(value, kind)
    scheme = value[:8].partition(":")[0].lower()
    if scheme in ("http", "https"):
        return fetch(value)
    return unquote(urlsplit(value).path) if scheme == "file" else value


def _is_empty(value: Any) -> bool:
    """Return whether the value of a block's field is missing or empty, without the truth value of an array."""
    return value is None or (isinstance(value, str | bytes | list) and not value)


def _decoded(text: str, kind: str) -> bytes:
    data = decode_base64(unquote(text))
    if data is None:
        raise InvalidImage(f"the {kind} is not valid base64.")
    return data


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]

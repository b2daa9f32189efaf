"""Find the pictures of a conversation: where they stand, how large they are, who made them, what they are called."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from PIL import Image

from langchain_tops.content import extras_of, picture_part
from tops_engine.budget import Keep
from tops_engine.conversation.messages import own_keep
from tops_engine.errors import InvalidImage
from tops_engine.media.images import open_image

MAX_REMEMBERED = 4096


@dataclass(frozen=True)
class Look:
    """What is known of a picture once it was opened.

    Attributes:
        size: Width and height in pixels.
        digest: A fingerprint of its pixels.
        thumbnail: The mean red, green and blue in a grid of 64 x 64 cells, a byte each.
    """

    size: tuple[int, int]
    digest: bytes
    thumbnail: bytes


@dataclass(frozen=True)
class Picture:
    """One picture of a conversation.

    Attributes:
        number: Its place among the pictures, from 1 for the oldest.
        message, block: The indices of the message and of the content block.
        content: The block, in LangChain's standard form where it has one.
        source: What it is opened from: a path, a data URL, base64, or the bytes of a file.
        look: Size and fingerprint; None if it cannot be opened here.
        is_missing: Whether it is a file that does not exist any more.
        age: How many later messages hold pictures.
        tool: The tool whose result it is in.
        keep: Its own budget.
        is_named: Whether it stands beside the question, or the question names it.
        relevance: Share of the question's words that stand beside the picture, from 0.0 to 1.0.
    """

    number: int
    message: int
    block: int
    content: dict[str, Any]
    source: str | bytes | None
    look: Look | None
    is_missing: bool
    age: int
    tool: str | None
    keep: Keep | None
    is_named: bool
    relevance: float

    @property
    def has_low_detail(self) -> bool:
        """Whether OpenAI is asked to look at it with ``detail: "low"``."""
        return _option(self.content, "detail") == "low"


class Album:
    """Finds the pictures of conversations, and remembers their sizes, so that each picture is opened once."""

    def __init__(self) -> None:
        self._looks: dict[bytes, Look | None] = {}

    def find(self, messages: Sequence[BaseMessage]) -> list[Picture]:
        """Return the pictures in their order.

        Raises:
            InvalidInput: If the own budget of a picture is not allowed.
        """
        found = [
            (message, block, content)
            for message, each in enumerate(messages)
            if isinstance(each.content, list)
            for block, raw in enumerate(each.content)
            if (content := _picture_block(raw)) is not None
        ]
        holders = sorted({message for message, _, _ in found}, reverse=True)
        ages = {message: age for age, message in enumerate(holders)}
        asked = next((n for n in reversed(range(len(messages))) if isinstance(messages[n], HumanMessage)), None)
        question = _words(messages[asked].text) if asked is not None else []
        pictures = []
        for number, (message, block, content) in enumerate(found, 1):
            beside, names = messages[message], _names(content, number)
            source = _source(content)
            pictures.append(
                Picture(
                    number=number,
                    message=message,
                    block=block,
                    content=content,
                    source=source,
                    look=self._look(source),
                    is_missing=_is_missing(source),
                    age=ages[message],
                    tool=beside.name if isinstance(beside, ToolMessage) else None,
                    keep=own_keep({"keep": _option(content, "keep")}),
                    is_named=message == asked or any(_names_it(question, name) for name in names),
                    relevance=_relevance(question, [*_words(beside.text), *(word for name in names for word in name)]),
                )
            )
        return pictures

    def _look(self, source: str | bytes | None) -> Look | None:
        key = None if source is None else _key(source)
        if source is None or key is None:
            return None
        if key not in self._looks:
            if len(self._looks) >= MAX_REMEMBERED:
                self._looks.clear()
            self._looks[key] = _opened(source)
        return self._looks[key]


def _picture_block(raw: Any) -> dict[str, Any] | None:
    """Return a content block in the standard form if it is a picture, otherwise None."""
    if not isinstance(raw, Mapping) or raw.get("type") == "text":
        return None
    block: Any = HumanMessage([dict(raw)]).content_blocks[0]
    if block.get("type") == "non_standard":
        block = block["value"]
    kinds = ("image", "image_url", "input_image", "file", "media")
    if not isinstance(block, Mapping) or block.get("type") not in kinds:
        return None
    if block["type"] in ("file", "media") and picture_part(block) is None:
        return None
    return {name: value for name, value in block.items() if name != "id" or "id" in raw}


def _source(content: Mapping[str, Any]) -> str | bytes | None:
    """Return what a picture is opened from; None for a web address, a file id and a block without usable data."""
    part = picture_part(content)
    source = None if part is None else part["image"]
    if source is None or isinstance(source, str | bytes):
        return source
    try:
        image = open_image(source)
    except InvalidImage:
        return None
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _option(content: Mapping[str, Any], name: str) -> Any:
    value = extras_of(content).get(name)
    return content.get(name) if value is None else value


def _key(source: str | bytes) -> bytes | None:
    """Return what stands for the content of a source; None for a file that is not there."""
    if isinstance(source, str) and (path := _path(source)) is not None:
        try:
            state = path.stat()
        except (OSError, ValueError):
            return None
        source = f"{path}\n{state.st_mtime_ns}\n{state.st_size}"
    data = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    return hashlib.sha256(data).digest()


def _path(source: str) -> Path | None:
    """Return the path that a text stands for; None if it holds the picture itself."""
    return None if source.startswith("data:") or len(source) > 1024 else Path(source).expanduser()


def _is_missing(source: str | bytes | None) -> bool:
    if not isinstance(source, str) or (path := _path(source)) is None:
        return False
    try:
        return not path.exists()
    except (OSError, ValueError):
        return False


def _opened(source: str | bytes) -> Look | None:
    try:
        image = open_image(source)
    except InvalidImage:
        # The model opens it as well, and explains what is wrong.
        return None
    pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes())
    return Look(image.size, pixels.digest(), image.resize((64, 64), Image.Resampling.BOX).tobytes())


def _names(content: Mapping[str, Any], number: int) -> list[list[str]]:
    """Return the words of each name of a picture: its number, the names in its block, the name of its file."""
    given = [_option(content, name) for name in ("name", "filename", "title")]
    url = content.get("url") or content.get("image_url") or content.get("image") or content.get("path")
    if isinstance(url, Mapping):
        url = url.get("url")
    if isinstance(url, str) and not url.startswith("data:"):
        file = PurePosixPath(unquote(urlsplit(url).path))
        given += [file.name, file.stem]
    numbered = [f"{kind} {number}" for kind in ("picture", "image", "photo", "screenshot")]
    return [words for name in [*numbered, *given] if isinstance(name, str) and (words := _words(name))]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _names_it(question: Sequence[str], name: Sequence[str]) -> bool:
    """Return whether the words of a name follow each other in the question."""
    return any(question[start : start + len(name)] == name for start in range(len(question) - len(name) + 1))


def _relevance(question: Sequence[str], beside: Sequence[str]) -> float:
    asked = {word for word in question if len(word) > 2}
    return len(asked & set(beside)) / len(asked) if asked else 0.0

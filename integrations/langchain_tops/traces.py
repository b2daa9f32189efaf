"""Traces without the data of pictures: LangChain's tracers write each picture of a history again at every step."""

import hashlib
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import BaseMessage

from tops_engine.media.sources import decode_base64

# Shorter texts are left as they are: a hash would be no shorter.
SHORTEST = 200


def without_pictures(value: Any) -> Any:
    """Return data in which a line of text stands for the base64 of each picture and video.

    The line states the size and the beginning of the SHA-256 of the bytes, so that equal pictures remain recognizable.
    Give it to LangSmith, or use it on what you write yourself:

        .. code-block:: python

            tracer = LangChainTracer(client=langsmith.Client(hide_inputs=without_pictures))
            json.dumps(dumpd(without_pictures(messages)))

    Args:
        value: Messages, or data such as ``dumpd`` and tracers make of them; it stays as it is.
    """
    if isinstance(value, BaseMessage):
        return value.model_copy(update={"content": without_pictures(value.content)})
    if isinstance(value, Mapping):
        return {key: _line(part) if _is_data(key, part) else without_pictures(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_pictures(part) for part in value]
    return _line(value) if isinstance(value, str) and value.startswith("data:") and len(value) >= SHORTEST else value


def _is_data(key: Any, part: Any) -> bool:
    """Return whether the value of a key is base64: standard blocks and those of OpenAI, Anthropic and Google."""
    return key in ("base64", "data", "file_data") and isinstance(part, str) and len(part) >= SHORTEST


def _line(text: str) -> str:
    data = decode_base64(text.partition(",")[2] if text.startswith("data:") else text)
    data = text.encode("utf-8", "surrogatepass") if data is None else data
    return f"[{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()[:16]}]"

"""Text that every tokenizer and encoder takes."""

from typing import Any


def valid_text(text: str) -> str:
    """Return a text that can be encoded as UTF-8.

    A pair of surrogates becomes the character that it stands for, as in JSON that was decoded in parts. A surrogate
    without its partner becomes U+FFFD, as in a text that was cut inside an emoji.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def with_valid_texts(value: Any) -> Any:
    """Return a copy of JSON-like data in which every text, keys included, went through :func:`valid_text`."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {with_valid_texts(key): with_valid_texts(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [with_valid_texts(part) for part in value]
    return value

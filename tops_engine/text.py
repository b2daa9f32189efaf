"""Text that every tokenizer and encoder takes."""

from typing import Any

from tops_engine.errors import InvalidInput

#: Levels of lists and objects in arguments, functions and schemas. Python's own limit would allow a few more.
MOST_NESTED = 250


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


def with_valid_texts(value: Any, depth: int = 0) -> Any:
    """Return a copy of JSON-like data in which every text, keys included, went through :func:`valid_text`.

    Parameters
    ----------
    depth : how deep the value lies in the data.

    Raises
    ------
    InvalidInput
        If data lie more than ``MOST_NESTED`` levels deep.
    """
    if depth > MOST_NESTED:
        raise InvalidInput(f"A value is nested more than {MOST_NESTED} levels deep.")
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {with_valid_texts(key): with_valid_texts(part, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [with_valid_texts(part, depth + 1) for part in value]
    return value

"""The base class of all settings."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tops_engine.errors import InvalidInput, quote, shorten

#: Characters of a sentence about several faults.
MOST_CHARACTERS = 180


class Settings(BaseModel):
    """Base class of frozen options; a value that is not allowed raises :class:`InvalidInput`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise InvalidInput(error_sentence(error)) from None


def error_sentence(error: ValidationError) -> str:
    """Return pydantic's report as one sentence that names the option, the value and what is allowed.

    Faults beyond ``MOST_CHARACTERS`` are counted only.
    """
    parts = [_part(detail) for detail in error.errors(include_url=False)]
    text = parts[0]
    for number, part in enumerate(parts[1:], 1):
        if len(text) + len(part) > MOST_CHARACTERS:
            text += f"; and {len(parts) - number} more"
            break
        text += f"; {part}"
    return text if text.endswith(".") else f"{text}."


def _part(detail: ErrorDetails) -> str:
    option = shorten(".".join(str(part) for part in detail["loc"]))
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        return f"There is no option {quote(option)}"
    if option and not (detail["type"] == "value_error" and option in message):
        return f"{option}={quote(detail['input'])} is not allowed: {message}"
    return message

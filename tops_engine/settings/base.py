"""The base class of all settings."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tops_engine.errors import InvalidInput


class Settings(BaseModel):
    """Base class of frozen options; a value that is not allowed raises :class:`InvalidInput`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise InvalidInput(error_sentence(error)) from None


def error_sentence(error: ValidationError) -> str:
    """Return pydantic's report as one sentence that names the option, the value and what is allowed."""
    parts = []
    for detail in error.errors(include_url=False):
        option = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            parts.append(f"There is no option {option!r}")
        elif option and not (detail["type"] == "value_error" and option in message):
            parts.append(f"{option}={detail['input']!r} is not allowed: {message}")
        else:
            parts.append(message)
    text = "; ".join(parts)
    return text if text.endswith(".") else f"{text}."

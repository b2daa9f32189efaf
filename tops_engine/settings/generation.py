"""Options that say how an answer is written."""

import json
import os
from pathlib import Path

from pydantic import Field, field_validator

from tops_engine.settings.base import Settings


class Generation(Settings):
    """How the answer is written."""

    max_tokens: int = Field(default=256, ge=1, description="Most tokens to write.")
    temperature: float = Field(
        default=0.0,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="0 takes the likeliest token each time; higher is freer.",
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Sample from the likeliest tokens that together hold this probability."
    )
    top_k: int = Field(default=0, ge=0, description="Sample from this many likeliest tokens; 0 is no limit.")
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=10, description="Above 1 discourages repeating; unset takes the checkpoint's own value."
    )
    stop: tuple[str, ...] = Field(default=(), description="The answer ends before any of these texts.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Makes sampling repeatable.")
    json_schema: str | None = Field(
        default=None,
        description="The answer is JSON that satisfies this schema: its text, or the path of a file that holds it.",
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("stop holds an empty text, which would end every answer at once; leave it out")
        return value

    @field_validator("json_schema", mode="before")
    @classmethod
    def _schema_as_text(cls, value: object) -> object:
        """One text for equal schemas; the order of the keys stays, as answers follow it."""
        if value is None:
            return None
        if isinstance(value, str | os.PathLike) and not str(value).lstrip().startswith("{"):
            value = _file_text(Path(value))
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise ValueError(f"json_schema is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError("json_schema is a JSON Schema object, its text, or the path of a file that holds it")
        try:
            return json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"json_schema holds what JSON cannot: {error}") from None


def _file_text(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"json_schema names a file that cannot be read: {error}") from None

"""Options of writing an answer."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from tops_engine.errors import quote
from tops_engine.settings.base import Settings
from tops_engine.settings.json_schema import schema_text
from tops_engine.text import valid_text


class Generation(Settings):
    """The options of writing an answer: length, sampling, stop texts, JSON schema and thinking."""

    max_tokens: int = Field(default=256, ge=1, description="The largest number of tokens to write.")
    temperature: float = Field(
        default=0.0,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="0 always takes the most probable token; higher values sample more freely.",
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Sample from the most probable tokens, up to this total probability."
    )
    top_k: int = Field(default=0, ge=0, description="Sample from this number of most probable tokens; 0 is no limit.")
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Values above 1 discourage repetition; unset takes the value of the checkpoint.",
    )
    stop: tuple[str, ...] = Field(default=(), description="Texts that end the answer; they are not part of it.")
    seed: int | None = Field(
        default=None, ge=-1, lt=2**64, description="Makes sampling repeatable; -1 is a new seed each time."
    )
    json_schema: str | None = Field(
        default=None,
        description="The answer is JSON that satisfies this schema: its text, or the path of a file that holds it.",
    )

    thinking: Literal["on", "off"] | Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Thinking models: 'on' and 'off' set the switch of the chat template, a number is the most tokens "
        "of reasoning. Unset leaves it to the template.",
    )

    @field_validator("thinking", mode="before")
    @classmethod
    def _read_thinking(cls, value: object) -> object:
        value = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        if value in (None, "on", "off") or (str(value).isdecimal() and int(str(value)) > 0):
            return value
        raise ValueError(f"thinking={quote(value)} is not allowed: give on, off or the most tokens of reasoning")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        """Take one text as one stop string; its letters would each end the answer."""
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("stop holds an empty text, which would end every answer at once; leave it out")
        return tuple(map(valid_text, value))

    @field_validator("seed")
    @classmethod
    def _new_seed(cls, value: int | None) -> int | None:
        return None if value == -1 else value

    @field_validator("json_schema", mode="before")
    @classmethod
    def _schema_as_text(cls, value: object) -> object:
        return None if value is None else schema_text(value)

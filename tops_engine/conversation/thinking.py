"""The reasoning of thinking models: the tokens around it, and the switch in chat templates."""

import re
from typing import NamedTuple


class Marks(NamedTuple):
    """The texts of the tokens around the reasoning.

    Attributes
    ----------
    begin, end : each one token.
    label : the text after the first mark that does not belong to the reasoning.
    """

    begin: str
    end: str
    label: str = ""


#: Qwen, GLM, SmolLM and others; Mistral; Gemma 4.
MARKS = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<|channel>", "<channel|>", "thought\n"),
)

#: The variable of chat templates that switches thinking on and off.
SWITCH = "enable_thinking"


def has_switch(template: str) -> bool:
    """Return whether a chat template can switch thinking on and off."""
    return re.search(rf"\b{SWITCH}\b", template) is not None


def writes_marks(template: str) -> bool:
    """Return whether a chat template is that of a model that thinks."""
    return any(marks.begin in template or marks.end in template for marks in MARKS)

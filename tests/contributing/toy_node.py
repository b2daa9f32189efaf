"""A node in one file; it lies in the folder ``nodes`` of a copy of the pack."""

from typing import Any

from tops_engine.settings import Generation, Pruning

from .sockets import PRUNING, expect_pruning
from .widgets import widget


class Describe:
    """Describe pruning settings."""

    NODE_ID = "TOPSToyDescribe"
    TITLE = "TOPS Toy Describe"
    CATEGORY = "TOPS"
    DESCRIPTION = "Describes pruning settings as a text."
    SEARCH_ALIASES = ("label",)
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("The method, its options and the budget.",)
    FUNCTION = "describe"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"max_tokens": widget(Generation.model_fields["max_tokens"])},
            "optional": {"pruning": (PRUNING, {"tooltip": "The settings to describe."})},
        }

    def describe(self, max_tokens: int, pruning: Pruning | None = None) -> tuple[str]:
        settings = expect_pruning(pruning)
        return (f"{settings.label} {settings.keep}, {max_tokens} tokens",)

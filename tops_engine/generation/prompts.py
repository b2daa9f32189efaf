"""Conversations in the model's chat template, prepared for any pruning."""

from collections.abc import Sequence
from dataclasses import replace

from tops_engine.conversation.messages import Conversation
from tops_engine.families import Family
from tops_engine.methods import VisualTokens


class PreparedPrompts:
    """Conversations in the chat template, whose pictures are encoded when first needed and then kept.

    Parameters
    ----------
    family : the loaded model.
    conversations : what is asked.
    thinking : what the switch of the chat template is set to; None leaves it to the template.
    """

    def __init__(self, family: Family, conversations: Sequence[Conversation], thinking: bool | None = None) -> None:
        self.prompts = [family.prepare(replace(conversation, thinking=thinking)) for conversation in conversations]
        self._visual_tokens: list[list[VisualTokens]] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def visual_tokens(self, family: Family) -> list[list[VisualTokens]]:
        """Return the visual tokens of each image of each prompt."""
        if self._visual_tokens is None:
            self._visual_tokens = family.encode(self.prompts)
        return self._visual_tokens

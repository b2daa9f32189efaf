"""Conversations in the model's chat template, prepared for any pruning."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from tops_engine.conversation.messages import Conversation
from tops_engine.conversation.thinking import has_switch
from tops_engine.families import Family, Prompt
from tops_engine.generation.resizing import prepare_resized
from tops_engine.methods import VisualTokens
from tops_engine.methods.resize import Resize
from tops_engine.settings import Generation, Pruning
from tops_engine.tower import TowerOptions


class PreparedPrompts:
    """Conversations in the chat template, whose pictures are encoded when first needed and then kept.

    Parameters
    ----------
    family : the loaded model.
    conversations : what is asked.
    thinking : what the switch of the chat template is set to; None leaves it to the template.
    resized : makes the pictures smaller, if its method does that; others prune later.
    """

    def __init__(
        self,
        family: Family,
        conversations: Sequence[Conversation],
        thinking: bool | None = None,
        resized: Pruning | None = None,
    ) -> None:
        self._conversations = [replace(conversation, thinking=thinking) for conversation in conversations]
        self.prompts = [_prepare(family, conversation, resized) for conversation in self._conversations]
        self._visual_tokens: dict[TowerOptions, list[list[VisualTokens]]] = {}

    def resized(self, family: Family, pruning: Pruning) -> "PreparedPrompts":
        """Return the same conversations with smaller pictures, if the method of a pruning makes them smaller."""
        if not isinstance(pruning.method_instance, Resize):
            return self
        thinking = self._conversations[0].thinking if self._conversations else None
        return PreparedPrompts(family, self._conversations, thinking, pruning)

    def __len__(self) -> int:
        return len(self.prompts)

    def is_encoded(self, tower: TowerOptions) -> bool:
        """Return whether the pictures are encoded by a tower that runs with these options."""
        return tower in self._visual_tokens

    def part(
        self, numbers: Sequence[int], tower: TowerOptions, images: Sequence[list[VisualTokens]]
    ) -> "PreparedPrompts":
        """Return some of the prompts.

        Parameters
        ----------
        tower, images : the visual tokens of each image of each of all prompts, and how the tower ran.
        """
        part = copy(self)
        part._conversations = [self._conversations[number] for number in numbers]
        part.prompts = [self.prompts[number] for number in numbers]
        part._visual_tokens = {tower: [images[number] for number in numbers]}
        return part

    def visual_tokens(self, family: Family, tower: TowerOptions) -> list[list[VisualTokens]]:
        """Return the visual tokens of each image of each prompt, from a tower that runs with these options."""
        if tower not in self._visual_tokens:
            self._visual_tokens[tower] = family.encode(self.prompts, tower)
        return self._visual_tokens[tower]


def prepare_prompts(
    family: Family, conversations: Sequence[Conversation] | PreparedPrompts, generation: Generation, pruning: Pruning
) -> PreparedPrompts:
    """Prepare conversations, unless they are, and make their pictures smaller, if the pruning does that.

    Raises
    ------
    TopsError
        If the conversations do not fit the model.
    """
    if isinstance(conversations, PreparedPrompts):
        return conversations.resized(family, pruning)
    return PreparedPrompts(family, conversations, _thinking(family, generation), pruning)


def _thinking(family: Family, generation: Generation) -> bool | None:
    """Return what the switch of the chat template is set to; None leaves it to the template."""
    if isinstance(generation.thinking, int):
        return True if has_switch(family.chat_template) else None
    return None if generation.thinking is None else generation.thinking == "on"


def _prepare(family: Family, conversation: Conversation, pruning: Pruning | None) -> Prompt:
    method = pruning.method_instance if pruning is not None else None
    if pruning is None or not isinstance(method, Resize):
        return family.prepare(conversation)
    return prepare_resized(family, conversation, pruning.budget, method.enlarge)

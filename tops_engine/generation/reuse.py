"""Reuse of earlier prompts by a run, and storage of its prompt for later runs."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

from tops_engine.families import Prompt
from tops_engine.generation.planning import Group
from tops_engine.generation.prefill import Prefilled
from tops_engine.generation.prefix_cache import PrefixCache, ReadPrompt
from tops_engine.settings import Pruning


class PromptReuse:
    """The beginning that a prompt shares with an earlier one.

    Parameters
    ----------
    cache : earlier prompts; None reuses nothing and stores nothing.
    prompt, digests : what is asked, and a fingerprint of each picture and video.
    pruning, groups : what is kept.

    Attributes
    ----------
    prefix : the shared beginning, None if there is none.
    """

    def __init__(
        self,
        cache: PrefixCache | None,
        prompt: Prompt,
        digests: Sequence[bytes],
        pruning: Pruning,
        groups: Sequence[Group],
    ) -> None:
        self._cache = cache
        self._prompt = prompt
        self._pruning = pruning
        self._keys = _keys(prompt, digests, groups) if cache is not None else []
        layers = [stage.layer for group in groups for stage in group.stages if stage.layer]
        self._first_segment = min(layers, default=None)
        self.prefix = cache.find(prompt, self._keys, pruning, self._first_segment) if cache is not None else None

    @property
    def num_tokens(self) -> int:
        """The number of prompt tokens after stage I that the first layers need not read again."""
        return self.prefix.num_tokens if self.prefix is not None else 0

    def store(self, prefilled: Prefilled) -> None:
        """Store the states of the prompt for later ones."""
        if self._cache is None or prefilled.first_states is None:
            return
        read = ReadPrompt(
            # The pictures and pixels are not needed again and would take memory.
            replace(self._prompt, images=[], videos=[], pixels={}),
            self._keys,
            self._pruning,
            self._first_segment,
            prefilled.stage_one[0],
            prefilled.first_states,
        )
        self._cache.store(read, self.prefix)


def _keys(prompt: Prompt, digests: Sequence[bytes], groups: Sequence[Group]) -> list[Hashable]:
    """Return what determines stage I of each picture: itself, its group, and how many tokens the group keeps."""
    keys: dict[int, Hashable] = {}
    for group in groups:
        num_tokens = sum(prompt.spans[number].layout.num_tokens for number in group.members)
        together = (*(digests[number] for number in group.members), group.least, group.num_first(num_tokens))
        for place, number in enumerate(group.members):
            keys[number] = (place, together)
    return [keys[number] for number in range(len(digests))]

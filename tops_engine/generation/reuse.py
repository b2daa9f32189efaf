"""Reuse of earlier prompts by a run, and storage of its prompt for later runs."""

from collections.abc import Sequence
from dataclasses import replace

from tops_engine.budget import Stage
from tops_engine.families import Prompt
from tops_engine.generation.prefill import Prefilled
from tops_engine.generation.prefix_cache import PrefixCache, ReadPrompt
from tops_engine.settings import Pruning


class PromptReuse:
    """The beginning that a prompt shares with an earlier one.

    Parameters
    ----------
    cache : earlier prompts; None reuses nothing and stores nothing.
    prompt, digests : what is asked, and a fingerprint of each picture and video.
    pruning, stages : what is kept.

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
        stages: Sequence[tuple[Stage, ...]],
    ) -> None:
        self._cache = cache
        self._prompt = prompt
        self._pruning = pruning
        self._stages = list(stages)
        self._digests = list(digests)
        self.prefix = cache.find(prompt, self._digests, pruning, stages) if cache is not None else None

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
            self._digests,
            self._pruning,
            self._stages,
            prefilled.stage_one[0],
            prefilled.first_states,
        )
        self._cache.store(read, self.prefix)

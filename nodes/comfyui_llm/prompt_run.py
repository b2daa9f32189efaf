"""One prompt with pictures that a model of ComfyUI reads: its visual tokens, the plan of what is kept, its answer."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tops_engine.device.clock import Clock
from tops_engine.families.parts.vision_signals import captured_calls
from tops_engine.families.prompt import Prompt
from tops_engine.generation.planning import Group, plan_groups
from tops_engine.media.layout import VisualLayout, VisualSpan
from tops_engine.methods import VisualTokens
from tops_engine.methods.tokens import unavailable
from tops_engine.settings import Pruning

from ..pictures import to_pictures
from .language_model import LanguageModel
from .reading import Reading


@dataclass(frozen=True)
class Picture:
    """A picture of the prompt and where its visual tokens lie."""

    image: Image.Image
    layout: VisualLayout


class PromptRun:
    """A prompt from its pictures to the last token of its answer.

    Parameters
    ----------
    model : runs it.
    pruning : what to keep.
    entries : the prompt as ComfyUI's tokenizer gives it: ids of tokens, and what stands for pictures.
    device : where it runs.

    Attributes
    ----------
    pictures : of the prompt.
    tokens : the visual tokens of each picture, until the prompt is read.
    reading : how the prompt is read; None before, and where nothing is dropped.
    token_ids, seconds : of the answer.
    """

    def __init__(self, model: LanguageModel, pruning: Pruning, entries: Sequence[Any], device: torch.device) -> None:
        self.model, self.pruning = model, pruning
        self.clock = Clock(device)
        self.pictures: list[Picture] = []
        self.tokens: list[VisualTokens] = []
        self.reading: Reading | None = None
        self.token_ids: list[int] = []
        self.seconds = 0.0
        self._began = time.perf_counter()
        self._entries = entries
        #: Rows of each embedding that ComfyUI made; of pictures, their number instead.
        self._embedded: list[int | Picture] = []

    def embed(self, original: Callable[..., Any], embed: dict[str, Any], device: torch.device) -> Any:
        """Let ComfyUI embed a picture or something else, and note the visual tokens of a picture."""
        if embed.get("type") != "image":
            result = original(embed, device=device)
            self._embedded.append(0 if result[0] is None else _num_rows(result[0]))
            return result
        data = embed["data"][..., :3]  # ComfyUI's models take no alpha
        (image,) = to_pictures(data[:1])
        tower = self.model.tower
        with self.clock("vision"), captured_calls(tower.projector, *tower.taps()) as (projector, *taps):
            features, extra = original(embed | {"data": data}, device=device)
        grid = tower.grid(extra, image.size)
        picture = Picture(image, tower.layout(grid, image.size))
        signals = tower.signals(projector, taps, grid)
        lazy: dict[str, Any] = {"vision_attention": unavailable("attention in a vision tower")}
        lazy |= {name: _once(compute) for name, compute in signals.items()}
        tokens = VisualTokens(
            features.reshape(-1, features.shape[-1]),
            picture.layout,
            deepstack=tower.deepstack(extra),
            project=tower.project,
            **lazy,
        )
        self._embedded.append(picture)
        self.pictures.append(picture)
        self.tokens.append(tokens)
        return features, extra

    @functools.cached_property
    def is_pruned(self) -> bool:
        """Whether tokens are dropped: if not, ComfyUI runs as if nothing were patched."""
        if not self.pictures or int(self.spans[-1][-1]) == self.num_tokens - 1:
            return False  # a prompt that ends with a picture has no text that rates its tokens
        sizes = [picture.layout.num_tokens for picture in self.pictures]
        adaptive = self.pruning.method_instance.adaptive
        return any(
            adaptive or stage.num_tokens < sum(sizes[number] for number in group.members)
            for group in self.groups
            for stage in group.stages
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt, pictures included."""
        return self._rows[1]

    @property
    def spans(self) -> list[Tensor]:
        """The rows of each picture in the embedded prompt: int64 [n] on the CPU."""
        return self._rows[0]

    @functools.cached_property
    def _rows(self) -> tuple[list[Tensor], int]:
        made, spans, row = iter(self._embedded), [], 0
        for entry in self._entries:
            given = entry["data"] if isinstance(entry, dict) and entry.get("type") == "embedding" else entry
            if not isinstance(given, dict):
                row += _num_rows(given) if isinstance(given, Tensor) else 1
                continue
            one = next(made, 0)
            size = one if isinstance(one, int) else one.layout.num_tokens
            if isinstance(one, Picture):
                spans.append(torch.arange(row, row + size))
            row += size
        return spans, row

    @functools.cached_property
    def groups(self) -> list[Group]:
        """How many tokens of which pictures are kept at each stage, by the engine's plan."""
        images = [picture.image for picture in self.pictures]
        pairs = zip(self.spans, self.pictures, strict=True)
        spans = [VisualSpan(rows, picture.layout) for rows, picture in pairs]
        ids = torch.zeros(self.num_tokens, dtype=torch.int64)
        prompt = Prompt(ids, ids[None], spans, {}, images, [], keeps=[None] * len(spans))
        (groups,) = plan_groups([prompt], self.pruning, len(self.model.decoder.layers), [self.tokens])
        return groups

    @property
    def num_dropped_first(self) -> int:
        """How many tokens are dropped before the first layer at least."""
        sizes = [picture.layout.num_tokens for picture in self.pictures]
        totals = [sum(sizes[number] for number in group.members) for group in self.groups]
        return sum(total - group.num_first(total) for group, total in zip(self.groups, totals, strict=True))

    def reads_prompt(self, embeds: Tensor | None) -> bool:
        """Return whether a call of the decoder reads the prompt."""
        return self.reading is None and embeds is not None and embeds.shape[:2] == (1, self.num_tokens)

    def begin_reading(self, embeds: Tensor, positions: Tensor | None) -> Reading:
        """Prune the prompt before the first layer.

        Parameters
        ----------
        embeds : [1, N, d].
        positions : [axes, N], None where ComfyUI counts the tokens.
        """
        self.reading = Reading(
            self.model.decoder, self.pruning, embeds, positions, self.spans, self.tokens, self.groups, self.clock
        )
        return self.reading

    def end_reading(self) -> None:
        """Drop what only the reading of the prompt needs."""
        assert self.reading is not None
        self.reading.end()
        self.tokens = []

    def finish(self, token_ids: Sequence[int]) -> None:
        """Note the answer."""
        self.token_ids = list(token_ids)
        self.seconds = time.perf_counter() - self._began
        self.tokens = []


def _num_rows(embedding: Tensor) -> int:
    return embedding.numel() // embedding.shape[-1]


def _once(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a function that computes [1, n] or [1, n, c] at its first call, and returns [n] or [n, c]."""
    return functools.cache(lambda: compute()[0])

"""Reuse of the prompts read last, for further questions about the same pictures.

Before the first pruning between layers no token depends on later ones of the prompt: stage I reads the picture alone
and attention is causal. The kept tokens, keys, values and hidden states up to the point where two prompts differ are
therefore valid for the second prompt; only its new text runs through those layers.
"""

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from tops_engine.families import Prompt
from tops_engine.families.parts.known_pictures import picture_digest
from tops_engine.media.videos import Video
from tops_engine.methods import Selection
from tops_engine.settings import Pruning


@dataclass(frozen=True)
class LayerStates:
    """The states of one sequence of m tokens after decoder layers [0, num_layers).

    Attributes
    ----------
    keys, values : [1, heads, m, head_dim] for each of the layers.
    layer_input : [1, m, d] at the input of the last of them.
    hidden_states : [1, m, d] at its output.
    """

    keys: list[Tensor]
    values: list[Tensor]
    layer_input: Tensor
    hidden_states: Tensor

    @property
    def num_layers(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt that was read.

    Attributes
    ----------
    prompt, keys : what was asked, and what determines stage I of each picture and video.
    pruning, first_segment : what was kept, and the first decoder layer at which tokens may be dropped; None if there is
        none.
    selections : each image's stage I (None where nothing was dropped).
    states : of the tokens that stage I left.
    """

    prompt: Prompt
    keys: list[Hashable]
    pruning: Pruning
    first_segment: int | None
    selections: list[Selection | None]
    states: LayerStates

    @functools.cached_property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [*self.states.keys, *self.states.values, self.states.layer_input, self.states.hidden_states]
        tensors += [self.prompt.input_ids, self.prompt.position_ids]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@dataclass(frozen=True)
class Prefix:
    """The beginning that a new prompt shares with an earlier one.

    Attributes
    ----------
    read : the earlier prompt.
    num_images : how many of its images are shared, from the first on.
    num_tokens : how many of its tokens after stage I are shared, from the first on.
    """

    read: ReadPrompt
    num_images: int
    num_tokens: int


class PrefixCache:
    """The prompts read last, as many as fit.

    Parameters
    ----------
    max_bytes : bytes that all of them may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._reads: OrderedDict[int, ReadPrompt] = OrderedDict()
        self._count = 0

    def find(
        self, prompt: Prompt, keys: Sequence[Hashable], pruning: Pruning, first_segment: int | None
    ) -> Prefix | None:
        """Return the longest beginning with a picture that ``prompt`` shares with one read by the same method.

        The parameters are those of :class:`ReadPrompt`. A picture is shared if stage I keeps the same of it.
        """
        best: tuple[int, Prefix] | None = None
        for number, read in self._reads.items():
            if _same_method(read.pruning, pruning) and read.first_segment == first_segment:
                prefix = _shared_prefix(read, prompt, keys)
                if prefix.num_images and (best is None or prefix.num_tokens > best[1].num_tokens):
                    best = number, prefix
        if best is None:
            return None
        number, prefix = best
        self._reads.move_to_end(number)
        return prefix

    def store(self, read: ReadPrompt, after: Prefix | None) -> None:
        """Keep a prompt, in place of the earlier one with which it shares the beginning ``after``."""
        if after is not None:
            self._reads = OrderedDict((number, kept) for number, kept in self._reads.items() if kept is not after.read)
        if not read.keys or read.num_bytes > self._max_bytes:
            return
        self._count += 1
        self._reads[self._count] = read
        self._evict()

    @property
    def num_bytes(self) -> int:
        """Bytes that the kept prompts take."""
        return sum(read.num_bytes for read in self._reads.values())

    def limit(self, max_bytes: int) -> None:
        """Set how many bytes the prompts may take, and drop the oldest ones beyond that."""
        self._max_bytes = max_bytes
        self._evict()

    def _evict(self) -> None:
        while self.num_bytes > self._max_bytes:
            self._reads.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._reads.clear()


def visual_digests(prompt: Prompt) -> list[bytes]:
    """Return a fingerprint of the content of each picture and video, in the order of the prompt."""
    images = iter(prompt.image_digests)
    return [_video_digest(visual) if isinstance(visual, Video) else next(images) for visual in prompt.visuals]


def _video_digest(video: Video) -> bytes:
    digest = hashlib.sha256(str(video.timestamps).encode())
    for frame in video.frames:
        digest.update(picture_digest(frame))
    return digest.digest()


def _same_method(one: Pruning, other: Pruning) -> bool:
    """Return whether two prunings choose alike where they keep equal numbers of tokens."""
    same_numbers = one.resolved_positions == other.resolved_positions
    return one.method_instance == other.method_instance and one.merge == other.merge and same_numbers


def _shared_prefix(read: ReadPrompt, prompt: Prompt, keys: Sequence[Hashable]) -> Prefix:
    old, new = read.prompt, prompt
    # The last token is always read: its logits begin the answer.
    longest = min(len(old.input_ids), len(new.input_ids) - 1)
    same = old.input_ids[:longest] == new.input_ids[:longest]
    same &= (old.position_ids[:, :longest] == new.position_ids[:, :longest]).all(dim=0)
    length = longest if same.all() else int(same.int().argmin())
    pairs = zip(read.keys, keys, strict=False)
    num_same_images = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    for spans in (old.spans, new.spans):
        if num_same_images < len(spans):
            length = min(length, int(spans[num_same_images].positions[0]))
    # A picture is shared as a whole or not at all.
    num_images = 0
    for before, now in zip(old.spans[:num_same_images], new.spans, strict=False):
        if now.positions[-1] < length and torch.equal(before.positions, now.positions):
            num_images += 1
    for span in new.spans[num_images:]:
        length = min(length, int(span.positions[0]))
    dropped = sum(
        span.layout.num_tokens - len(selection.indices)
        for span, selection in zip(new.spans[:num_images], read.selections[:num_images], strict=True)
        if selection is not None
    )
    return Prefix(read, num_images, length - dropped)

"""Reuse of encoded pictures, so that the vision tower runs once for a picture and all its budgets and questions."""

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor

from tops_engine.budget import Keep
from tops_engine.conversation.messages import Conversation
from tops_engine.errors import UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.families.visual_tokens import question_signals
from tops_engine.media.layout import VisualLayout
from tops_engine.media.videos import Video
from tops_engine.methods import Method, Selection, VisualTokens
from tops_engine.methods.tokens import SIGNALS
from tops_engine.tower import WHOLE_TOWER, TowerOptions

#: The fingerprint of a picture or video, its number of visual tokens and its grids (some families cut a picture
#: differently when it is one of several), and how the vision tower ran.
Key = tuple[bytes, int, tuple[tuple[int, int], ...], TowerOptions]


@dataclass(frozen=True)
class EncodedPicture:
    """The visual tokens of a picture or video, and the signals of the vision tower that were kept of it.

    Attributes
    ----------
    features : [n, d]
    deepstack : [n, d] for each of the first decoder layers, as in :class:`~tops_engine.methods.VisualTokens`.
    signals : by their names there; None is a signal that the family does not give.
    survivors : int64 [k], the tokens that the vision tower kept; None if it kept all.
    """

    features: Tensor
    deepstack: tuple[Tensor, ...]
    signals: dict[str, Tensor | None]
    survivors: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [self.features, *self.deepstack, *self.signals.values(), self.survivors]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None)


class EncodedPictures:
    """The pictures and videos encoded last, as many as fit.

    Parameters
    ----------
    max_bytes : bytes that all of them may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pictures: OrderedDict[Key, EncodedPicture] = OrderedDict()

    def get(self, key: Key) -> EncodedPicture | None:
        """Return a picture if it is kept."""
        if key in self._pictures:
            self._pictures.move_to_end(key)
        return self._pictures.get(key)

    def store(self, key: Key, picture: EncodedPicture) -> None:
        """Keep a picture; one that is kept already gets the signals that it lacks."""
        known = self._pictures.pop(key, None)
        if known is not None:
            picture = replace(known, signals=known.signals | picture.signals)
        if picture.num_bytes <= self._max_bytes:
            self._pictures[key] = picture
            self._evict()

    @property
    def num_bytes(self) -> int:
        """Bytes that the kept pictures take."""
        return sum(picture.num_bytes for picture in self._pictures.values())

    def limit(self, max_bytes: int) -> None:
        """Set how many bytes the pictures may take, and drop the oldest ones beyond that."""
        self._max_bytes = max_bytes
        self._evict()

    def clear(self) -> None:
        """Forget everything."""
        self._pictures.clear()

    def _evict(self) -> None:
        while self.num_bytes > self._max_bytes:
            self._pictures.popitem(last=False)


class PromptPictures:
    """The pictures and videos of one prompt: known ones as they were kept, the others from the vision tower.

    Parameters
    ----------
    family : the loaded model.
    prompt, digests : what is asked, and a fingerprint of each picture and video.
    known : the pictures that are kept.
    tower : how the vision tower runs.

    Attributes
    ----------
    vision_flops : FLOPs of the vision tower and projector so far.
    """

    def __init__(
        self,
        family: Family,
        prompt: Prompt,
        digests: Sequence[bytes],
        known: EncodedPictures,
        tower: TowerOptions = WHOLE_TOWER,
    ) -> None:
        self._family = family
        self._tower = tower
        self._prompt = prompt
        self._known = known
        self._keys: list[Key] = [
            (digest, span.layout.num_tokens, span.layout.grids, tower)
            for digest, span in zip(digests, prompt.spans, strict=True)
        ]
        self._again = functools.cache(lambda: self._encode(prompt))
        self._new: set[int] = set()
        self.vision_flops = 0

    def visual_tokens(self) -> list[VisualTokens]:
        """Return the visual tokens of each picture and video; the tower runs for those that are not known."""
        kept = [self._known.get(key) for key in self._keys]
        self._new = {number for number, picture in enumerate(kept) if picture is None}
        encoded = iter(self._encoded(sorted(self._new)))
        return [
            next(encoded) if picture is None else self._read(number, picture, span.layout)
            for number, (picture, span) in enumerate(zip(kept, self._prompt.spans, strict=True))
        ]

    def store(self, images: Sequence[VisualTokens], selections: Sequence[Selection | None], method: Method) -> None:
        """Keep the pictures after a run.

        What ``method`` reads of the tower is kept of pictures that it pruned, and of those with a budget of their own,
        which may be smaller in the next prompt.
        """
        for number, (key, image) in enumerate(zip(self._keys, images, strict=True)):
            shrinks = selections[number] is not None or self._prompt.keeps[number] is not None
            # A known picture brings what is kept of it; for more the tower would run.
            reads = method.signals if shrinks and number in self._new else ()
            stack = tuple(map(_alone, image.deepstack))
            signals = _signals(image, reads)
            self._known.store(key, EncodedPicture(_alone(image.features), stack, signals, image.survivors))

    def _read(self, number: int, picture: EncodedPicture, layout: VisualLayout) -> VisualTokens:
        """Return a known picture; a signal that was not kept is computed by running the tower again."""
        signals: dict[str, Any] = {
            name: None if value is None else partial(_value, value) for name, value in picture.signals.items()
        }
        for name in SIGNALS - signals.keys():
            signals[name] = partial(self._signal_again, number, name)
        about = question_signals(self._family, picture.features, signals["encoder_features"], self._prompt.question)
        return VisualTokens(
            picture.features,
            layout,
            deepstack=picture.deepstack,
            survivors=picture.survivors,
            project=self._family.project_rows,
            **signals,
            **about,
        )

    def _signal_again(self, number: int, name: str) -> Tensor:
        self._new.add(number)
        compute: Callable[[], Tensor] = getattr(self._again()[number], name)
        return compute()

    def _encoded(self, numbers: Sequence[int]) -> list[VisualTokens]:
        """Run the tower for some of the pictures and videos."""
        if not numbers:
            return []
        part = self._part(numbers) if len(numbers) < len(self._keys) else None
        if part is not None:
            return self._encode(part)
        return [self._again()[number] for number in numbers]

    def _encode(self, prompt: Prompt) -> list[VisualTokens]:
        images = self._family.encode([prompt], self._tower)[0]
        self.vision_flops += self._family.vision_flops(prompt) - saved_flops(images)
        return images

    def _part(self, numbers: Sequence[int]) -> Prompt | None:
        """Return a prompt of some of the pictures and videos; None if the family would cut them differently there."""
        visuals = [self._prompt.visuals[number] for number in numbers]
        kinds = ["video" if isinstance(visual, Video) else "image" for visual in visuals]
        images = [visual for visual in visuals if isinstance(visual, Image.Image)]
        videos = [visual for visual in visuals if isinstance(visual, Video)]
        content = [*({"type": kind} for kind in kinds), {"type": "text", "text": self._prompt.question}]
        keeps: tuple[list[Keep | None], list[Keep | None]] = ([None] * len(images), [None] * len(videos))
        message = {"role": "user", "content": content}
        prompt = self._family.prepare(Conversation([message], images, videos, [], False, *keeps))
        layouts = [self._prompt.spans[number].layout for number in numbers]
        same = [
            one is other and _same(span.layout, layout)
            for one, other, span, layout in zip(prompt.visuals, visuals, prompt.spans, layouts, strict=True)
        ]
        return prompt if all(same) else None


def _same(one: VisualLayout, other: VisualLayout) -> bool:
    return one.grids == other.grids and one.boxes.shape == other.boxes.shape and bool((one.boxes == other.boxes).all())


def _signals(image: VisualTokens, names: Sequence[str]) -> dict[str, Tensor | None]:
    """Return signals of the tower by name; of the others only which do not exist."""
    signals: dict[str, Tensor | None] = {"cls_features": None} if image.cls_features is None else {}
    for name in names:
        # Where the family does not give a signal, the method will say so when it needs it.
        with contextlib.suppress(UnsupportedModel):
            if name not in signals:
                signals[name] = _alone(getattr(image, name)())
    return signals


def _alone(tensor: Tensor) -> Tensor:
    """Return a tensor that keeps no larger one in memory."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def saved_flops(images: Sequence[VisualTokens]) -> int:
    """Return the FLOPs that the vision tower left out for these pictures."""
    return sum(image.tower.saved_flops for image in images if image.tower is not None)


def _value(value: Tensor) -> Tensor:
    return value

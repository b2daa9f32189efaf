"""The choice of visual tokens before the language model and between its layers.

Selections are applied only here: hidden states, positions and the records of kept tokens are gathered together.
"""

from collections.abc import Sequence

import torch

from tops_engine.errors import TopsError
from tops_engine.generation.batch_state import BatchState, GroupState, ImageState
from tops_engine.generation.layer_signals import LayerSignals
from tops_engine.generation.rectifying import num_chosen, with_groups
from tops_engine.methods import Method, Positions, Selection, VisualTokens
from tops_engine.methods.base import with_dropped


class Stages:
    """The stages of a batch: the layers before which a method drops visual tokens.

    Parameters
    ----------
    state : of the batch.
    method : how tokens are chosen.
    positions : how the remaining ones are numbered; ``original`` where positions are 3-D.
    merge : whether tokens dropped before the language model are averaged with the kept ones.
    rectifies : whether kept tokens stand for those that are dropped before the language model.
    """

    def __init__(
        self, state: BatchState, method: Method, positions: Positions, merge: bool = False, rectifies: bool = False
    ) -> None:
        self.state = state
        self.method = method
        self.positions = positions
        self.merge = merge
        self.rectifies = rectifies

    def prune(self, layer: int) -> None:
        """Ask the method which tokens stay from ``layer`` on, and drop the others."""
        self.state.rating_layers = set()
        method = self.method.method_at(layer)
        pending = [
            (index, group, count)
            for index, sequence in enumerate(self.state.sequences)
            for group in sequence.groups
            if (count := group.stages.get(layer, group.num_tokens)) < group.num_tokens
            or (method.adaptive and layer > 0 and layer in group.stages)
        ]
        if not pending:
            return
        asked = [entry for entry in pending if layer or any(image.selection is None for image in entry[1].images)]
        self._select_alone(layer, [entry for entry in asked if len(entry[1].images) == 1])
        for index, group, count in asked:
            if len(group.images) > 1:
                self._select_jointly(layer, index, group, count)
        for index, group, _ in pending:
            for image in group.images:
                self._apply(index, image)
        self.state.gather(self.positions, layer)

    def _select_alone(self, layer: int, asked: Sequence[tuple[int, GroupState, int]]) -> None:
        """Ask the method for tokens of single images."""
        if not asked:
            return
        images = [(index, group.images[0]) for index, group, _ in asked]
        counts = [count for _, _, count in asked]
        if layer:
            shown = [LayerSignals(self.state, layer, index, image).layer_tokens() for index, image in images]
            selections = self.method.method_at(layer).select_at_layer(shown, counts)
        else:
            selections = self._select_visual([image.tokens for _, image in images], counts)
        for (index, group, count), selection in zip(asked, selections, strict=True):
            self._take(layer, index, group, count, [selection])

    def _select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        """Ask the method for tokens of single images before the language model, where the tower left more."""
        asked = [number for number, count in enumerate(counts) if count < images[number].num_remaining]
        selections = [_every_token(image) for image in images]
        if asked:
            remaining = [images[number].remaining() for number in asked]
            wanted = [counts[number] for number in asked]
            if self.rectifies:
                chosen = self._select_rectified(remaining, wanted)
            else:
                chosen = self.method.method_at(0).select_visual(remaining, wanted)
            for number, selection in zip(asked, chosen, strict=True):
                selections[number] = selection
        return selections

    def _select_rectified(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        """Ask the method for a half of the tokens; the others stand for what it drops."""
        halves = [num_chosen(image, count) for image, count in zip(images, counts, strict=True)]
        chosen = self.method.method_at(0).select_visual(images, halves)
        return [with_groups(*one) for one in zip(images, chosen, counts, strict=True)]

    def _select_jointly(self, layer: int, index: int, group: GroupState, count: int) -> None:
        """Ask the method for tokens of all images of a group together."""
        sizes = [len(image.slots) if layer else image.tokens.num_remaining for image in group.images]
        least = group.group.least_tokens(count, sizes)
        if layer:
            shown = [LayerSignals(self.state, layer, index, image).layer_tokens() for image in group.images]
            selections = self.method.select_at_layer_jointly(shown, count, least)
        elif count == sum(sizes):
            selections = [_every_token(image.tokens) for image in group.images]
        else:
            remaining = [image.tokens.remaining() for image in group.images]
            selections = self.method.select_visual_jointly(remaining, count, least)
        self._take(layer, index, group, count, selections)

    def _take(self, layer: int, index: int, group: GroupState, count: int, selections: Sequence[Selection]) -> None:
        """Check what a method chose of the images of a group, and note it."""
        method, width = self.method.method_at(layer), self.state.hidden.shape[2]
        sizes = [len(selection.indices) for selection in selections]
        chosen = sum(sizes)
        if min(sizes) == 0 or not (chosen <= count if method.adaptive else chosen == count):
            raise TopsError(
                f"Method {method.name!r} was asked for {count} tokens and chose {chosen}; this is a bug in the method."
            )
        num_tokens = group.num_tokens if layer else sum(image.tokens.num_remaining for image in group.images)
        self.state.selection_flops[index] += method.selection_flops(num_tokens, chosen, width)
        for image, selection in zip(group.images, selections, strict=True):
            image.selection = selection if layer else selection.among(image.tokens.survivors)
            if selection.sizes is not None:
                # Similarity of all dropped tokens, and the means.
                self.state.selection_flops[index] += 4 * (num_tokens - chosen // 2) ** 2 * width
            if self.merge and layer == 0:
                image.selection = with_dropped(image.tokens.remaining(), selection).among(image.tokens.survivors)
                # Similarity of all tokens with the kept ones, and the sums.
                self.state.selection_flops[index] += 4 * image.tokens.num_remaining * len(selection.indices) * width

    def _apply(self, index: int, image: ImageState) -> None:
        selection = image.selection
        assert selection is not None
        image.slots = image.slots[selection.indices]
        image.kept = image.kept[selection.indices]
        if selection.sizes is not None or image.sizes is not None:
            image.sizes = selection.sizes if image.sizes is None else image.sizes[selection.indices]
        if selection.features is not None:
            # Not in place: the prefix cache may keep the states from before.
            places = torch.full_like(image.slots, index), image.slots
            self.state.hidden = self.state.hidden.index_put(places, selection.features.to(self.state.hidden.dtype))


def _every_token(image: VisualTokens) -> Selection:
    """Return the selection of all tokens that the vision tower kept."""
    return Selection(torch.arange(image.num_remaining, device=image.features.device))

"""Prompts with smaller pictures: the model's own image processor makes no more visual tokens than a budget allows."""

import math
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from tops_engine.budget import Keep, target_tokens
from tops_engine.conversation.messages import Conversation
from tops_engine.errors import BudgetError, UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.media.bounds import scaled_size
from tops_engine.media.layout import VisualLayout

#: Scales of a picture that are tried, evenly from nothing to its own size.
STEPS = 64


def prepare_resized(family: Family, conversation: Conversation, keep: Keep, enlarge: bool = False) -> Prompt:
    """Prepare a conversation with pictures that have at most their budget of visual tokens.

    Each picture has the largest size that fits, but no more pixels than before. Where the settings of the image
    processor decide and not the picture, one setting holds for the prompt: the one that fits the smallest budget.

    Parameters
    ----------
    keep : the budget of pictures without one of their own.
    enlarge : make pictures small and enlarge them again; see :class:`~tops_engine.methods.resize.Resize`.

    Raises
    ------
    BudgetError
        If the smallest picture has more tokens than the budget.
    UnsupportedModel
        If the model brings every picture to one size, or there is a video.
    """
    if conversation.videos:
        raise UnsupportedModel("resize makes pictures smaller, not videos; choose another method for videos.")
    own_keeps = [keep if own is None else own for own in conversation.image_keeps]
    if all(own == 1.0 for own in own_keeps):
        return family.prepare(conversation)
    if enlarge:
        return _enlarged(family, conversation, own_keeps)
    if family.one_size:
        raise UnsupportedModel(
            "This model brings every picture to one size, so a smaller one has as many visual tokens and resize saves "
            "nothing; resize with enlarge=true measures what a smaller picture still shows."
        )
    alone = len(conversation.images) == 1
    sizes = [family.bounded_size(image) for image in conversation.images]
    counts = [family.picture_tokens(*size, alone) for size in sizes]
    budgets = [target_tokens(own, count) for own, count in zip(own_keeps, counts, strict=True)]
    if all(budget >= count for budget, count in zip(budgets, counts, strict=True)):
        prompt = family.prepare(conversation)
    elif (pixels := family.pixel_counts()) is not None:
        with family.other_bounds(None, _setting(family, pixels, sizes, counts, budgets)):
            prompt = family.prepare(conversation)
    else:
        with family.other_bounds(1, None):
            images = [
                _resized(image, _fitting_size(family, size, alone, count, budget)) if budget < count else image
                for image, size, count, budget in zip(conversation.images, sizes, counts, budgets, strict=True)
            ]
            prompt = family.prepare(replace(conversation, images=images))
    # Boxes in an answer are those of the pictures that were given.
    return replace(prompt, unresized_tokens=counts, sizes=[image.size for image in conversation.images])


def _setting(
    family: Family,
    pixels: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    counts: Sequence[int],
    budgets: Sequence[float],
) -> int:
    """Return the largest of the numbers of pixels with which every picture has at most its budget of tokens."""
    least: list[int] = []
    for most in reversed(pixels):
        with family.other_bounds(None, most):
            least = [family.picture_tokens(*size, alone=len(sizes) == 1) for size in sizes]
        if all(number <= budget for number, budget in zip(least, budgets, strict=True)):
            return most
    number, count = max(zip(least, counts, budgets, strict=True), key=lambda picture: picture[0] / picture[2])[:2]
    raise _too_small(number, count)


def _fitting_size(family: Family, size: tuple[int, int], alone: bool, count: int, budget: float) -> tuple[int, int]:
    """Return width and height, up to ``size``, with which a picture has the most tokens that its budget allows.

    A larger picture does not always have more tokens, since some models cut it differently. So the best of ``STEPS``
    scales is sought first, and then a larger one up to the next of these.
    """

    def tokens(pixels: int) -> int:
        return family.picture_tokens(*scaled_size(*size, None, pixels), alone)

    steps = [max(1, math.prod(size) * step**2 // STEPS**2) for step in range(STEPS + 1)]
    numbers = [tokens(pixels) for pixels in steps]
    fitting = [step for step in range(STEPS + 1) if numbers[step] <= budget]
    if not fitting:
        raise _too_small(min(numbers), count)
    best = max(fitting, key=lambda step: (numbers[step], step))
    fits, too_large, most = steps[best], steps[min(best + 1, STEPS)], numbers[best]
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        number = tokens(middle)
        if most <= number <= budget:
            fits, most = middle, number
        else:
            too_large = middle
    return scaled_size(*size, None, fits)


def _too_small(number: int, count: int) -> BudgetError:
    return BudgetError(
        f"The smallest picture that this model takes has {number} visual tokens, and the whole one {count}; with "
        f"resize, use at least keep={math.ceil(1e4 * number / count) / 1e4:g}."
    )


def _enlarged(family: Family, conversation: Conversation, keeps: Sequence[Keep]) -> Prompt:
    """Prepare a conversation with pictures that were made small and enlarged again."""
    if not family.one_size:
        raise UnsupportedModel(
            "enlarge=true is for models that bring every picture to one size; this one takes smaller pictures, so "
            "leave it out."
        )
    whole = family.prepare(conversation)
    side = whole.pixels["pixel_values"].shape[-1]
    images = []
    for image, keep, span in zip(conversation.images, keeps, whole.spans, strict=True):
        layout = span.layout
        share = target_tokens(keep, layout.num_tokens) / layout.num_tokens
        images.append(_resized(_resized(image, _shown_size(image, layout, side, share)), image.size))
    return family.prepare(replace(conversation, images=images))


def _shown_size(image: Image.Image, layout: VisualLayout, side: int, share: float) -> tuple[int, int]:
    """Return the size in which the vision tower sees a picture, with ``share`` of the pixels.

    Parameters
    ----------
    side : pixels along a side of what the tower sees at once.
    """
    if share >= 1:
        return image.size
    token = side / layout.grids[0][1]
    rows, columns = layout.grids[-1]
    # The finest tokens may cover more than the picture, or less.
    left, top, right, bottom = layout.boxes[layout.view == layout.view.max()].T.tolist()
    width, height = columns * token / (max(right) - min(left)), rows * token / (max(bottom) - min(top))
    scale = math.sqrt(share)
    return (
        max(1, round(min(width, image.width) * scale)),
        max(1, round(min(height, image.height) * scale)),
    )


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)

"""Plan a run before the prefill: token counts, numbering of the kept tokens and room for the answer.

The number of tokens that each picture keeps is decided here and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tops_engine import selection
from tops_engine.budget import Keep, Stage
from tops_engine.errors import BudgetError, ContextLengthError
from tops_engine.families import Decoder, Prompt
from tops_engine.generation.running_mean import RunningMean
from tops_engine.methods import Positions, VisualTokens
from tops_engine.settings import Pruning
from tops_engine.settings.allocation import bounds


@dataclass(frozen=True)
class Group:
    """Pictures and videos of a prompt whose tokens are chosen together: usually one, or all that share a budget.

    Attributes
    ----------
    members : their numbers in the prompt.
    stages : how many tokens of all of them together remain at each stage.
    least : of each member, the least part of these tokens; empty for a single member.
    """

    members: tuple[int, ...]
    stages: tuple[Stage, ...]
    least: tuple[float, ...] = ()

    def num_first(self, num_tokens: int) -> int:
        """Return how many of the group's ``num_tokens`` tokens enter the language model."""
        return min([num_tokens, *(stage.num_tokens for stage in self.stages if stage.layer == 0)])

    def least_tokens(self, count: int, sizes: Sequence[int]) -> list[int]:
        """Return the least number of tokens of each member when ``count`` of those that remain, ``sizes``, are kept."""
        least = [min(max(1, int(count * part)), size) for part, size in zip(self.least, sizes, strict=True)]
        while sum(least) > count:
            least[least.index(max(least))] -= 1
        return least


def plan_groups(
    prompts: Sequence[Prompt],
    pruning: Pruning,
    num_layers: int,
    images: Sequence[Sequence[VisualTokens]] | None = None,
    running: RunningMean | None = None,
) -> list[list[Group]]:
    """Return the groups of each prompt, with the token counts of their stages.

    Parameters
    ----------
    images : the visual tokens of each prompt, which an ``allocation`` reads; None plans with the mean for each picture.
    running : what earlier pictures got, if ``keep`` is the mean of a stream.

    Raises
    ------
    BudgetError
        If a budget cannot be met; it names the picture if that has a budget of its own.
    """
    targets = (
        _allocated(prompts, pruning, images, running) if images is not None and pruning.allocation != "fixed" else {}
    )
    groups = []
    for index, prompt in enumerate(prompts):
        shared = [number for number, keep in enumerate(prompt.keeps) if keep is None]
        together = shared if pruning.budget_per == "prompt" and len(shared) > 1 else []
        planned = [
            Group((number,), _stages(number, prompt, pruning, num_layers, targets.get((index, number))))
            for number in range(len(prompt.spans))
            if number not in together
        ]
        if together:
            allocated = [targets.get((index, number)) for number in shared]
            planned.append(_joint_group(prompt, together, pruning, num_layers, allocated))
        groups.append(planned)
    return groups


def _allocated(
    prompts: Sequence[Prompt],
    pruning: Pruning,
    images: Sequence[Sequence[VisualTokens]],
    running: RunningMean | None,
) -> dict[tuple[int, int], int]:
    """Return the layer-average of each picture without a budget of its own, by the numbers of prompt and picture."""
    places = [
        (index, number)
        for index, prompt in enumerate(prompts)
        for number, keep in enumerate(prompt.keeps)
        if keep is None
    ]
    ranges = [bounds(pruning, images[index][number].layout.num_tokens) for index, number in places]
    curve = selection.CURVES[pruning.allocation]
    curves = [curve(images[i][n].features, most) for (i, n), (_, _, most) in zip(places, ranges, strict=True)]
    means, leasts = [mean for mean, _, _ in ranges], [least for _, least, _ in ranges]
    if running is not None:
        sizes = [images[index][number].layout.num_tokens for index, number in places]
        counts = running.allocate(curves, means, leasts, sizes)
    else:
        counts = selection.allocate(curves, round(sum(means)), leasts)
    return dict(zip(places, counts, strict=True))


def _stages(number: int, prompt: Prompt, pruning: Pruning, num_layers: int, target: int | None) -> tuple[Stage, ...]:
    """Return the stages of a single picture, by its own budget, by what it was allocated or by the common budget."""
    own = prompt.keeps[number]
    try:
        return pruning.stages(prompt.spans[number].layout.num_tokens, num_layers, target if own is None else own)
    except BudgetError as error:
        if own is not None:
            raise BudgetError(f"The budget of picture or video {number + 1} of the prompt: {error}") from error
        if target is not None:
            raise BudgetError(
                f"allocation={pruning.allocation} gives a picture too small a budget: {error} Set keep_min."
            ) from error
        raise


def _joint_group(
    prompt: Prompt, members: Sequence[int], pruning: Pruning, num_layers: int, targets: Sequence[int | None]
) -> Group:
    """Return the group of all pictures that share a budget: planned as one picture with all their tokens."""
    sizes = [prompt.spans[number].layout.num_tokens for number in members]
    allowed = [bounds(pruning, size) for size in sizes]
    means = [mean if target is None else target for (mean, _, _), target in zip(allowed, targets, strict=True)]
    total = sum(means)
    keep: Keep = pruning.budget if isinstance(pruning.budget, float) and None in targets else round(total)
    stages = pruning.stages(sum(sizes), num_layers, keep)
    # Each picture keeps a token at each stage.
    counts = tuple(Stage(layer, max(count, len(members))) for layer, count in stages)
    return Group(tuple(members), counts, tuple(least / total for _, least, _ in allowed))


def check_remaining(groups: Sequence[Group], images: Sequence[VisualTokens], tower_keep: float) -> None:
    """Check that the vision tower left as many tokens of each picture as the language model is to read.

    Raises
    ------
    BudgetError
        If it left fewer.
    """
    for group in groups:
        members = [images[number] for number in group.members]
        remaining = sum(image.num_remaining for image in members)
        num_first = group.num_first(sum(image.layout.num_tokens for image in members))
        if num_first > remaining:
            raise BudgetError(
                f"tower_keep={tower_keep} leaves {remaining} tokens of a picture, and {num_first} are to enter the "
                "language model; raise tower_keep or lower keep."
            )


def numbering(decoder: Decoder, positions: Positions) -> Positions:
    """Return how the kept tokens are numbered: tokens with 3-D coordinates keep them, as in the TOPS paper.

    With 3-D coordinates there is no gap to close: the text after a picture continues from the longer side of the
    picture, however many of its tokens are kept. Tokens also keep their positions where layers read keys of earlier
    ones: those are rotated by the positions that the tokens had there.
    """
    shares_keys = decoder.num_writing_layers < decoder.num_layers
    return "original" if decoder.position_axes > 1 or shares_keys else positions


def room_for_answer(prompt: Prompt, groups: Sequence[Group], positions: Positions, decoder: Decoder) -> int:
    """Return how many tokens the context of the model leaves for the answer.

    Raises
    ------
    ContextLengthError
        If the prompt alone fills the context.
    """
    length, limit = int(prompt.position_ids.max()) + 1, decoder.max_positions
    if positions == "contiguous":
        for group in groups:
            num_tokens = sum(prompt.spans[number].layout.num_tokens for number in group.members)
            length -= num_tokens - group.num_first(num_tokens)
    if length >= limit:
        raise ContextLengthError(
            f"The prompt needs {length} positions and the model has {limit}; "
            "shorten the text, send fewer pictures or keep fewer tokens."
        )
    return limit - length

"""Plan a run before the prefill: token counts, numbering of the kept tokens and room for the answer."""

from collections.abc import Sequence

from tops_engine.budget import Keep, Stage
from tops_engine.errors import BudgetError, ContextLengthError
from tops_engine.families import Decoder, Prompt
from tops_engine.methods import Positions
from tops_engine.settings import Pruning


def plan_stages(prompt: Prompt, pruning: Pruning, num_layers: int) -> list[tuple[Stage, ...]]:
    """Return the token counts of each picture and video of a prompt at each stage.

    Each has the stages of its own budget, or else of the budget of the pruning.

    Raises
    ------
    BudgetError
        If a budget cannot be met; it names the picture if that has a budget of its own.
    """
    return [
        _stages_of(number, span.layout.num_tokens, keep, pruning, num_layers)
        for number, (span, keep) in enumerate(zip(prompt.spans, prompt.keeps, strict=True), 1)
    ]


def _stages_of(number: int, num_tokens: int, keep: Keep | None, pruning: Pruning, num_layers: int) -> tuple[Stage, ...]:
    try:
        return pruning.stages(num_tokens, num_layers, keep)
    except BudgetError as error:
        if keep is None:
            raise
        raise BudgetError(f"The budget of picture or video {number} of the prompt: {error}") from error


def numbering(decoder: Decoder, positions: Positions) -> Positions:
    """Return how the kept tokens are numbered: tokens with 3-D coordinates keep them, as in the TOPS paper.

    With 3-D coordinates there is no gap to close: the text after a picture continues from the longer side of the
    picture, however many of its tokens are kept. Tokens also keep their positions where layers read keys of earlier
    ones: those are rotated by the positions that the tokens had there.
    """
    shares_keys = decoder.num_writing_layers < decoder.num_layers
    return "original" if decoder.position_axes > 1 or shares_keys else positions


def room_for_answer(prompt: Prompt, stages: Sequence[tuple[Stage, ...]], positions: Positions, decoder: Decoder) -> int:
    """Return how many tokens the context of the model leaves for the answer.

    Raises
    ------
    ContextLengthError
        If the prompt alone fills the context.
    """
    length, limit = int(prompt.position_ids.max()) + 1, decoder.max_positions
    if positions == "contiguous":
        for span, plan in zip(prompt.spans, stages, strict=True):
            if plan[0].layer == 0:
                length -= span.layout.num_tokens - plan[0].num_tokens
    if length >= limit:
        raise ContextLengthError(
            f"The prompt needs {length} positions and the model has {limit}; "
            "shorten the text, send fewer pictures or keep fewer tokens."
        )
    return limit - length

"""Plan a run before the prefill: token counts, numbering of the kept tokens and room for the answer."""

from collections.abc import Sequence

from tops_engine.budget import Stage
from tops_engine.errors import ContextLengthError
from tops_engine.families import Decoder, Prompt
from tops_engine.methods import Positions
from tops_engine.settings import Pruning


def plan_stages(prompt: Prompt, pruning: Pruning, num_layers: int) -> list[tuple[Stage, ...]]:
    """Return the token counts of each picture and video of a prompt at each stage."""
    return [pruning.stages(span.layout.num_tokens, num_layers) for span in prompt.spans]


def numbering(decoder: Decoder, positions: Positions) -> Positions:
    """Return how the kept tokens are numbered: tokens with 3-D coordinates keep them, as in the TOPS paper.

    With 3-D coordinates there is no gap to close: the text after a picture continues from the longer side of the
    picture, however many of its tokens are kept.
    """
    return positions if decoder.position_axes == 1 else "original"


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

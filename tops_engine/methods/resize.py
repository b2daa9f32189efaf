"""A smaller picture in place of pruning, the control that shows what pruning is worth."""

from pydantic import Field

from tops_engine.budget import Keep, Stage
from tops_engine.methods.base import Method


class Resize(Method):
    """Make each picture smaller until the model makes no more visual tokens of it than the budget; prune nothing.

    The model's own image processor makes the tokens: of a scaled picture (Qwen-VL, LLaVA-NeXT, Mistral 3, LFM2-VL), or
    with fewer tiles, a shorter longest side or fewer tokens where it brings every picture to the size that its settings
    say (InternVL, Idefics3 and SmolVLM, Gemma 4). The largest picture that fits the budget is taken, which may have
    clearly fewer tokens; the answer reports how many. The engine resizes (``generation/resizing.py``).
    """

    name = "resize"
    source = "baseline of arXiv 2510.07143 (VTC-Bench)"

    enlarge: bool = Field(
        default=False,
        description="For models that bring every picture to one size: make the picture as small as the budget says and "
        "enlarge it again. All visual tokens are kept and nothing is saved; the answer shows what a smaller picture "
        "still tells.",
    )

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        return (Stage(0, num_visual_tokens),)

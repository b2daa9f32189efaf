"""HAWK (arXiv 2604.07812): what the question asks for in the first layer, by the weight of each of its heads."""

from collections.abc import Sequence

from pydantic import Field, field_validator

from tops_engine.device.lazy import Tensor, torch
from tops_engine.errors import InvalidInput
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import VisualTokens

#: The weights of the 28 heads of Qwen2.5-VL-7B that the official code publishes.
QWEN2_5_VL_7B = (
    *(0.0875, 0.3000, 0.0480, 0.0321, 0.0104, 0.0102, 0.0336, 0.0460, 0.0540, 0.0472, 0.0234, 0.0537, 0.0109, 0.0573),
    *(0.0276, 0.0403, 0.0429, 0.0352, 0.0162, 0.0519, 0.0553, 0.0266, 0.0222, 0.0480, 0.0337, 0.0250, 0.0000, 0.0224),
)


class HAWK(Method):
    """Keep the tokens that the question matches best in the language model's first layer, heads weighted by importance.

    A token's score is the product of its key with the mean query of the question's tokens, before the rotary embedding,
    scaled to length 1 over the tokens of the picture for each head, and added with the weights of the heads (equations
    4 to 7). The weights say how much the model loses on benchmarks if a head is switched off. They are published for
    Qwen2.5-VL-7B, which is the default where the layer has 28 heads; elsewhere all heads count the same unless
    ``head_weights`` gives others, so that the method is then without the part that names it.

    The official code keeps the least whole number of tokens that is not below a fraction; here the budget is exact. In
    models whose first layer has no attention between tokens, the first one that has it stands for it.
    """

    name = "hawk"
    source = "arXiv 2604.07812"
    default_positions = "original"
    reads_question = True

    head_weights: tuple[float, ...] | None = Field(
        default=None,
        description="Weights of the heads of the first layer, separated by commas; unset takes those published for "
        "Qwen2.5-VL-7B where there are 28 heads, and equal ones elsewhere.",
    )

    @field_validator("head_weights", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """Read ``0.1,0.2`` or ``0.1+0.2``, which users type."""
        return value.replace(" ", "").replace("+", ",").split(",") if isinstance(value, str) else value

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        return [Selection.highest(self._scores(image), count) for image, count in zip(images, counts, strict=True)]

    def _scores(self, image: VisualTokens) -> Tensor:
        from tops_engine.device.transfer import to_device  # imports torch, which reading the options does not need

        products = image.question_products()
        num_heads = products.shape[1]
        weights = self.head_weights or (QWEN2_5_VL_7B if num_heads == len(QWEN2_5_VL_7B) else (1.0,) * num_heads)
        if len(weights) != num_heads:
            raise InvalidInput(
                f"head_weights has {len(weights)} weights, and the layer has {num_heads} heads; give one for each."
            )
        return torch.nn.functional.normalize(products, dim=0) @ to_device(torch.tensor(weights), products.device)

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # The keys of all tokens, at most as wide as the model, and the products. The question is short.
        return 2 * num_tokens * feature_size * (feature_size + 1)

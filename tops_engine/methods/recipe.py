"""FitPrune recipes: how many visual tokens each layer sees, fitted to a model by ``tops_engine.calibration``."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tops_engine.methods.file_option import FileOption


class Recipe(FileOption):
    """The share of the visual tokens that each layer sees, and how it was fitted.

    Attributes
    ----------
    version : of this format.
    method : the method that the recipe is for.
    model : the checkpoint that the recipe was fitted to, by its name at that time.
    num_layers : of the decoder of that model; a model with another number of layers cannot use the recipe.
    keep : the layer-average fraction of the visual tokens that it was fitted to.
    remaining : for each layer, the fraction of an image's visual tokens that it sees: 1 in the first layer, and never
        more than in the layer before. Fractions apply to pictures of every size.
    divergence : how far attention to the visual tokens moved on the questions that the recipe was fitted on: the share
        by which its total changed, from the text and among the image's own tokens, mean over layers and questions.
    tolerance : the share of the unpruned model's attention that a layer was allowed to lose.
    num_questions : how many questions it was fitted on.
    """

    kind: ClassVar[str] = "recipe"
    made_by: ClassVar[str] = "tops calibrate"

    version: Literal[1] = 1
    method: Literal["fitprune"] = "fitprune"
    model: str
    num_layers: int = Field(ge=1)
    keep: float = Field(gt=0, le=1)
    remaining: tuple[float, ...]
    divergence: float = Field(ge=0)
    tolerance: float = Field(ge=0, le=1)
    num_questions: int = Field(ge=1)

    @model_validator(mode="after")
    def _check_curve(self) -> Self:
        curve = list(self.remaining)
        if len(curve) != self.num_layers:
            raise ValueError(f"remaining has {len(curve)} numbers for {self.num_layers} layers")
        if curve[0] != 1 or min(curve) <= 0 or curve != sorted(curve, reverse=True):
            raise ValueError("remaining has to start at 1, never grow from layer to layer, and stay above 0")
        return self

    @property
    def label(self) -> str:
        return f"for {self.model}"

    def settings(self) -> dict[str, Any]:
        return {"method": self.method, "keep": self.keep}

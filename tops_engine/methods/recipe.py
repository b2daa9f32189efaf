"""FitPrune recipes: how many visual tokens each layer sees, fitted to a model by ``tops_engine.calibration``."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tops_engine.errors import InvalidInput


class Recipe(BaseModel):
    """A small JSON file: what ``Pruning(recipe=...)`` runs, and where it comes from.

    Attributes
    ----------
    version : of this format.
    method : whose recipe this is.
    model : the checkpoint it was fitted on, as it was called then.
    num_layers : of that model's decoder; a model with another number cannot use the recipe.
    keep : the layer-average fraction of the visual tokens that it was fitted to.
    remaining : for each layer, the fraction of an image's visual tokens that it sees: 1 in the first, never growing.
        Fractions, so that pictures of other sizes can use it.
    divergence : how far attention to the visual tokens moved on the questions it was fitted on: mean over layers and
        questions of the share by which its total changed, from the text and among the image's own tokens.
    tolerance : the share of the unpruned model's attention that a layer was allowed to lose.
    num_questions : how many questions it was fitted on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    def _sound_curve(self) -> Self:
        curve = list(self.remaining)
        if len(curve) != self.num_layers:
            raise ValueError(f"remaining has {len(curve)} numbers for {self.num_layers} layers")
        if curve[0] != 1 or min(curve) <= 0 or curve != sorted(curve, reverse=True):
            raise ValueError("remaining has to start at 1 and never grow from layer to layer, and stay above 0")
        return self

    @classmethod
    def read(cls, source: "str | os.PathLike[str] | Mapping[str, object] | Recipe") -> "Recipe":
        """From a file, from what its JSON holds, or itself.

        Raises
        ------
        InvalidInput
            If there is no such file or it does not hold a recipe.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, str | os.PathLike):
            name = f"{os.fspath(source)!r}"
            try:
                values = json.loads(Path(source).read_text(encoding="utf-8"))
            except OSError as error:
                raise InvalidInput(f"The recipe {name} cannot be read: {error.strerror}.") from error
            except ValueError as error:
                raise InvalidInput(f"{name} is not a recipe: it is not JSON ({error}).") from error
        else:
            name, values = "What was given", source
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            where = ".".join(map(str, detail["loc"]))
            message = detail["msg"].removeprefix("Value error, ")
            raise InvalidInput(
                f"{name} is not a recipe that this version reads: {where + ': ' if where else ''}{message}; "
                "make one with `tops calibrate`."
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file.

        Raises
        ------
        InvalidInput
            If it cannot be written there.
        """
        try:
            Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidInput(f"The recipe cannot be written to {path}: {error.strerror}.") from error

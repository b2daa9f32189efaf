"""A short list of checkpoints to start with: size, memory, licence, and what each is good at."""

import json
from functools import cache
from importlib.resources import files

from pydantic import BaseModel

#: Memory in gigabytes that a question takes beside the weights: pictures, cache, activations.
QUESTION_GB = 1.5

#: Names of the precisions, as a user chooses them: a dtype, or a quantisation.
PRECISIONS = ("bfloat16", "8bit", "4bit")


class CuratedModel(BaseModel):
    """A checkpoint of the list.

    Attributes
    ----------
    name : its id on the hub.
    download_gb : size of its files in gigabytes (10^9 bytes).
    memory_gb : gigabytes of its weights in bfloat16, and quantised to 8 and 4 bits by bitsandbytes, where embeddings
        and the output layer stay in bfloat16. Computed from the shapes of the weights.
    licence : of the weights.
    good_at : in a few words.
    """

    name: str
    download_gb: float
    memory_gb: dict[str, float]
    licence: str
    good_at: str

    def fits_as(self, memory: int) -> str | None:
        """Return the most exact precision in which weights and a question fit into so many bytes; None if none does."""
        return next((one for one in PRECISIONS if (self.memory_gb[one] + QUESTION_GB) * 1e9 <= memory), None)

    def fit(self, memory: int) -> str:
        """Return in words how the model fits into so many bytes."""
        precision = self.fits_as(memory)
        if precision == PRECISIONS[0]:
            return "fits"
        return f"fits as {precision}" if precision else "too large here"


@cache
def curated_models() -> tuple[CuratedModel, ...]:
    """Return the list, smallest download first."""
    text = files("tops_engine").joinpath("curated_models.json").read_text(encoding="utf-8")
    return tuple(CuratedModel(**entry) for entry in json.loads(text))


def curated_model(name: str) -> CuratedModel | None:
    """Return the entry of a checkpoint; None if it is not in the list."""
    return next((model for model in curated_models() if model.name == name), None)

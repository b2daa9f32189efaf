"""How long a model takes to its first token on a device, as it was measured once and kept in the user's cache."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path
from pydantic import BaseModel, ConfigDict, ValidationError


class CostModel(BaseModel):
    """The milliseconds to the first token, as two straight lines that were fitted to measurements.

    Attributes
    ----------
    about : the model, its precision, the device and the number of threads.
    before_ms : preparation, vision tower and selection: a constant, and milliseconds a visual token before pruning.
    prefill_ms : reading the prompt: a constant, and milliseconds a GFLOP.
    error : the median of the relative errors on the measurements.
    """

    model_config = ConfigDict(frozen=True)

    about: dict[str, Any]
    before_ms: tuple[float, float]
    prefill_ms: tuple[float, float]
    error: float

    def first_token_ms(self, num_visual: int, prefill_flops: float) -> float:
        """Return the expected milliseconds to the first token of a prompt that is asked about alone.

        Parameters
        ----------
        num_visual : visual tokens before pruning.
        prefill_flops : FLOPs of reading the pruned prompt.
        """
        before = self.before_ms[0] + self.before_ms[1] * num_visual
        return before + self.prefill_ms[0] + self.prefill_ms[1] * prefill_flops / 1e9

    def save(self) -> Path:
        """Write the model to the user's cache and return its path."""
        path = _path(self.about)
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return path


def read_cost_model(about: Mapping[str, Any]) -> CostModel | None:
    """Return what was measured of a model on a device, None if nothing was."""
    try:
        return CostModel.model_validate_json(_path(about).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def _path(about: Mapping[str, Any]) -> Path:
    """Return the file of a model and device, in the cache folder of the hub's library (``HF_HOME``)."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return cached_assets_path("tops-engine", "cost-models") / f"{digest[:16]}.json"

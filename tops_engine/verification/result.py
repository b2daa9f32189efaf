"""The result of `tops verify`: what its JSON file holds. A change of these fields needs a new :data:`FORMAT`."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tops_engine.errors import InvalidInput

FORMAT = "tops verify 1"


class Part(BaseModel):
    """The base class of the parts of a result: frozen, and no other fields than those defined."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Difference(Part):
    """The first token in which the engine's answer differs from that of transformers' ``generate``."""

    where: Literal["alone", "in a batch"] = Field(description="Whether the prompt was asked alone or in a batch.")
    position: int = Field(description="Number of the token in the answer, from 0.")
    token_ids: tuple[int, int] = Field(description="The token of generate, then that of the engine.")
    tokens: tuple[str, str] = Field(description="The same two as text.")
    transformers_logits: tuple[float, float] = Field(description="Transformers' logits of these two tokens.")
    engine_logits: tuple[float, float] = Field(description="The engine's logits of the same two, the prompt alone.")
    margin: float = Field(description="Transformers' logit of its own token minus that of the engine's token.")
    tie: bool = Field(description="Whether rounding in the precision of the weights explains the difference.")


class ParityCase(Part):
    """One prompt, answered with keep=1.0 and by transformers' ``generate``."""

    prompt: str = Field(description="What is special about the prompt.")
    visual_tokens: int | None = Field(default=None, description="Visual tokens of its pictures.")
    answer_tokens: int | None = Field(default=None, description="Tokens of generate's answer that were compared.")
    logits_difference: float | None = Field(
        default=None, description="Largest difference of the two models' logits before any token of generate's answer."
    )
    differences: list[Difference] = Field(default=[], description="First differences, alone and in a batch.")
    skipped: str | None = Field(default=None, description="Why the prompt was not asked.")


class SelectedStage(Part):
    """The tokens that one stage of a run kept, compared with the plain algorithm in float64 on the same features."""

    num_tokens: int = Field(description="Visual tokens before the stage.")
    num_kept: int = Field(description="Visual tokens after it.")
    same: bool = Field(description="Whether the plain algorithm keeps the same tokens.")
    shortfall: float = Field(
        description="How far the scores of the kept tokens are from the best choices, as a fraction; 0 if same."
    )


class BudgetCheck(Part):
    """One budget: its stages, and the layer-average that ran."""

    keep: float = Field(description="The budget.")
    visual_tokens: int = Field(description="Visual tokens of the picture.")
    layer_average: float = Field(description="Visual tokens that a layer saw on average.")
    stages: list[SelectedStage] = Field(description="What each stage kept.")
    held: bool = Field(description="Whether selection and layer-average are right.")


class MaskedCheck(Part):
    """The logits of a pruned answer, compared with a run over the whole sequence without the dropped tokens."""

    keep: float = Field(description="The budget.")
    positions: str = Field(description="How the kept tokens are numbered.")
    largest_difference: float = Field(description="Largest difference of two logits.")
    tolerance: float = Field(description="Largest difference that the precision of the weights explains.")
    held: bool = Field(description="Whether the difference is within the tolerance.")


class Throughput(Part):
    """Answers of up to ``max_tokens`` tokens, several at a time."""

    batch: int = Field(description="Prompts that are answered together.")
    answers_per_s: float = Field(description="Answers a second, preparation of the pictures included.")
    tokens_per_s: float = Field(description="Written tokens a second.")


class SpeedRow(Part):
    """One budget: medians over the rounds, in which the budgets take turns."""

    keep: float = Field(description="The budget; 1.0 is unpruned.")
    visual_tokens: float = Field(description="Layer-average of visual tokens of the timed prompt.")
    first_token_s: float = Field(description="Seconds to the first token, with preparation and vision tower.")
    selection_s: float = Field(description="Seconds of them for choosing tokens.")
    next_token_s: float | None = Field(description="Seconds for each further token; null if the answer has only one.")
    first_token_ratio: float = Field(description="Unpruned first_token_s divided by this one, median of the rounds.")
    throughput: list[Throughput] = Field(description="At batch 1, and at the largest that was tried and fits.")
    peak_bytes: int | None = Field(description="Peak memory: of torch on a GPU, of the process otherwise.")
    energy_j: float | None = Field(description="Joules of an answer, if the driver tells.")


class FidelityRow(Part):
    """One pruning on the pictures of the package, compared with the unpruned model's own answers."""

    pruning: str = Field(description="The pruning, as it is typed.")
    loss_increase: float | None = Field(default=None, description="How much less likely they become, nats a token.")
    agreement: float | None = Field(default=None, description="Share of the questions with the same answer.")
    first_token_kl: float | None = Field(default=None, description="Divergence of the first token, nats.")
    layer_average: float | None = Field(default=None, description="Share of the visual tokens that a layer saw.")
    questions: int = Field(default=0, description="Number of questions.")
    error: str | None = Field(default=None, description="Why the pruning could not run.")


class Verification(Part):
    """Everything that `tops verify` found."""

    format: Literal["tops verify 1"] = Field(default="tops verify 1", description="The version of this file.")
    model: str = Field(description="Hub id, or the name of the folder.")
    commit: str | None = Field(description="Commit of the hub repository, if known.")
    model_type: str = Field(description="Model type of the checkpoint.")
    settings: dict[str, Any] = Field(description="How the model was loaded.")
    dtype: str = Field(description="Precision of the weights.")
    device: str = Field(description="Where it ran.")
    machine: dict[str, Any] = Field(description="Processors and load.")
    versions: dict[str, str] = Field(description="Versions of the packages that matter.")
    command: str = Field(description="The command that repeats it.")
    date: str = Field(description="Day of the run, in UTC.")
    seconds: float = Field(description="How long it took, without loading the model.")
    parity: list[ParityCase] = Field(description="keep=1.0 against transformers' generate.")
    budgets: list[BudgetCheck] = Field(description="Kept tokens and layer-average at each budget.")
    masked: list[MaskedCheck] = Field(description="Pruned logits against a masked reference.")
    speed: list[SpeedRow] = Field(description="Times, memory and energy at each budget.")
    fidelity: list[FidelityRow] = Field(description="What pruning does to the answers.")
    problems: list[str] = Field(description="What is not as it should be, a sentence each.")
    notes: list[str] = Field(description="What could not be measured, and why.")

    @property
    def held(self) -> bool:
        """Return whether everything that can be right or wrong is right."""
        return not self.problems


def read_verification(path: Path) -> Verification:
    """Read a JSON file that `tops verify` wrote.

    Raises
    ------
    InvalidInput
        If the file cannot be read, or is not such a file.
    """
    try:
        return Verification.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(
            f"{path} is not a file of `tops verify` ({FORMAT}): {where + ': ' if where else ''}{first['msg']}."
        ) from error

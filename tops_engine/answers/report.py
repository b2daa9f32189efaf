"""The answer of the engine: the text, the tokens each stage kept, measured times, FLOPs by formula, memory."""

from typing import Any

from pydantic import Field
from torch import Tensor

from tops_engine.answers.base import BaseAnswer, Report, StageUsage
from tops_engine.budget import Allocation, BudgetPer, Keep
from tops_engine.media.token_map import TokenMap


class FrameUsage(Report):
    """Token counts of one frame of a video.

    Attributes
    ----------
    frame : its number among the frames that the model saw, from 0. Where a token shows several frames, the first.
    visual_tokens : before pruning.
    layer_average : how many of its tokens a decoder layer saw on average.
    """

    frame: int
    visual_tokens: int
    layer_average: float


class PictureUsage(Report):
    """Token counts of one picture or video of a prompt.

    Attributes
    ----------
    visual_tokens : before pruning, and before it was made smaller.
    keep : its own budget; None if it has none, and the pruning sets the numbers of tokens.
    layer_average : how many of its tokens a decoder layer saw on average.
    frames : the counts of each frame of a video; empty for a picture. Tokens that belong to no frame, such as the
        newline token behind a video, are not among them.
    """

    visual_tokens: int
    keep: Keep | None
    layer_average: float
    frames: list[FrameUsage] = Field(default=[])


class StreamUsage(Report):
    """What the pictures of a stream got so far, as planned.

    Attributes
    ----------
    pictures : how many pictures and videos there were.
    mean, least, most, deviation : as of :class:`AllocationUsage`.
    """

    pictures: int
    mean: float
    least: float
    most: float
    deviation: float


class AllocationUsage(Report):
    """How a budget was divided among the pictures that were asked about together and have none of their own.

    Attributes
    ----------
    allocation, budget_per : the options of the pruning.
    pictures : how many pictures and videos there are.
    mean : kept visual tokens of all of them, as a layer-average and a fraction of all their visual tokens.
    least, most, deviation : the smallest and the largest such fraction of a single picture, and the standard deviation
        of these fractions.
    stream : the same of all pictures of a stream up to now; None unless ``mean_over`` is ``stream``.
    """

    allocation: Allocation
    budget_per: BudgetPer
    pictures: int
    mean: float
    least: float
    most: float
    deviation: float
    stream: StreamUsage | None = None


class CostLimitUsage(Report):
    """The budget that a limit of cost led to.

    Attributes
    ----------
    name, limit : the limit as it was asked for.
    cost : what the prompt costs by formula, in the unit of the limit. Milliseconds are those that were expected; the
        timings have the measured ones.
    keep : the largest budget within the limit, a fraction of the visual tokens.
    """

    name: str
    limit: float
    cost: float
    keep: float


class CascadeStep(Report):
    """One budget that an answer of a cascade was written with.

    Attributes
    ----------
    keep : the budget.
    layer_average : visual tokens that a decoder layer saw on average.
    confidence : the probability of the first tokens (``confident_by``); None at the last budget, where nothing is
        decided.
    """

    keep: Keep
    layer_average: float
    confidence: float | None


class CascadeUsage(Report):
    """What a cascade did.

    Attributes
    ----------
    answered_by : which budget the answer is from, counted from 1.
    steps : the budgets that this prompt was read with, the last of which answered.
    answers : how many conversations were asked together.
    mean : visual tokens that a decoder layer saw of all of them, over all steps, as a fraction of their visual tokens.
    """

    answered_by: int
    steps: list[CascadeStep]
    answers: int
    mean: float


class TowerUsage(Report):
    """What the vision tower did for the pictures that were encoded for this answer, if it left something out.

    Attributes
    ----------
    patches : of these pictures and videos.
    encoded : of them, those that went through the first layer; the others are equal to one of them.
    kept_tokens : visual tokens that the tower kept.
    saved_flops : FLOPs that a whole run would have taken in addition.
    """

    patches: int
    encoded: int
    kept_tokens: int
    saved_flops: int


class Usage(Report):
    """Token counts of one answer.

    Attributes
    ----------
    prompt_tokens : tokens of the unpruned prompt, visual tokens included.
    visual_tokens : visual tokens of all pictures and videos before pruning, and before pictures were made smaller.
    stages : what remained of each picture and video, in the order of the prompt, from which layer on.
    pictures : the counts of each picture and video, in the order of the prompt.
    allocation : how the budget was divided among pictures; None if each has the same.
    tower : what the vision tower left out; None if it ran as it is, or no picture was encoded for this answer.
    cascade : which budgets a cascade used; None without one. The stages and pictures are those of the last one.
    cost_limit : the budget that a limit of cost led to; None without one.
    layer_average : visual tokens that a decoder layer saw on average, of all pictures together: the true budget. Of a
        cascade, the sum over the budgets that were used.
    completion_tokens : tokens of the answer, the end token and the reasoning included.
    reasoning_tokens : tokens of the reasoning, without the marks around it.
    video_frames : how many frames of each video the model saw.
    reused_tokens : prompt tokens, of those that stage I kept, that the first layers did not read again, because an
        earlier prompt began with them.
    cache_bytes : bytes that the engine keeps of this and earlier prompts and pictures, for prompts to come.
    """

    prompt_tokens: int
    visual_tokens: int
    stages: list[StageUsage]
    layer_average: float
    completion_tokens: int
    reasoning_tokens: int = 0
    video_frames: list[int] = Field(default=[])
    reused_tokens: int = 0
    cache_bytes: int = 0
    pictures: list[PictureUsage] = Field(default=[])
    allocation: AllocationUsage | None = None
    tower: TowerUsage | None = None
    cascade: CascadeUsage | None = None
    cost_limit: CostLimitUsage | None = None

    @property
    def input_tokens(self) -> int:
        """Tokens of the prompt that entered the language model, after pruning before it."""
        return self.prompt_tokens - self.visual_tokens + self.input_visual_tokens

    @property
    def input_visual_tokens(self) -> int:
        """Visual tokens that entered the language model."""
        return sum(self.stages[0].visual_tokens) if self.stages else 0

    @property
    def unpruned_visual_tokens(self) -> int:
        """The same as ``visual_tokens``, under the name that the counts of every engine share."""
        return self.visual_tokens

    @property
    def kept_fraction(self) -> float:
        """``layer_average`` as a fraction of the visual tokens, 1.0 without images."""
        return self.layer_average / self.visual_tokens if self.visual_tokens else 1.0

    def visual_summary(self) -> str:
        """Return in words how many visual tokens there were and how many remain at each stage."""
        if not self.visual_tokens:
            return "no picture"
        stages = " → ".join(str(sum(stage.visual_tokens)) for stage in self.stages)
        average = f"layer-average {self.layer_average:.1f}, {100 * self.kept_fraction:.1f} %"
        return f"{self.visual_tokens} visual tokens → {stages} ({average})"


class Timings(Report):
    """Measured seconds; answers of a batch share those of the batch.

    Attributes
    ----------
    prepare : chat template, tokenizer and image processor; excludes reading video files.
    vision : vision tower and projector.
    selection : choosing tokens, all stages.
    prefill : reading the prompt up to the first token, without selection.
    deciding : writing the first tokens of a cascade, before any text is given out.
    decode : writing the other tokens.
    total : from the call to the last token.
    """

    prepare: float
    vision: float
    selection: float
    prefill: float
    deciding: float = 0.0
    decode: float
    total: float

    @property
    def first_token(self) -> float:
        """Seconds until the first token is given out."""
        return self.prepare + self.vision + self.selection + self.prefill + self.deciding


class Flops(Report):
    """Floating-point operations by formula (``flops.py``); a multiply-add is two."""

    vision: int
    selection: int
    prefill: int
    decode: int

    @property
    def total(self) -> int:
        return self.vision + self.selection + self.prefill + self.decode


class Answer(BaseAnswer):
    """An answer of the engine and everything that was measured for it.

    Attributes
    ----------
    pruning : the options that ran, those of the method included.
    kv_cache_bytes : bytes of the keys and values held for this answer at its end.
    token_ids : the tokens of the answer, the end token included. Not part of the JSON.
    token_map : which visual tokens remained, to draw. Not part of the JSON.
    """

    pruning: dict[str, Any]
    usage: Usage
    timings: Timings
    flops: Flops
    kv_cache_bytes: int
    token_ids: list[int] = Field(exclude=True, repr=False)
    token_map: TokenMap = Field(exclude=True, repr=False)

    def summary(self) -> str:
        usage, timings = self.usage, self.timings
        visual = usage.visual_summary()
        if usage.cascade is not None:
            visual += f", answered with budget {usage.cascade.answered_by} of the cascade"
        if usage.video_frames:
            visual = f"{sum(usage.video_frames)} frames, {visual}{self._spread()}"
        return "\n".join(
            [
                visual,
                f"prompt {usage.prompt_tokens} tokens, answer {usage.completion_tokens} tokens{self._thought()} "
                f"({self.finish_reason})",
                f"first token after {timings.first_token:.3f} s, {timings.total:.3f} s in total",
                f"{self.flops.total / 1e9:.3g} GFLOPs, KV cache {self.kv_cache_bytes / 1024:.0f} KiB",
                f"model {self.model}, method {self.pruning['method']}",
            ]
        )

    def _spread(self) -> str:
        """Return how many tokens the frames of the videos keep, from the least to the most."""
        averages = [frame.layer_average for picture in self.usage.pictures for frame in picture.frames]
        return f", {min(averages):.1f} to {max(averages):.1f} a frame" if averages else ""

    def _thought(self) -> str:
        return f", {self.usage.reasoning_tokens} of them reasoning" if self.usage.reasoning_tokens else ""


class ScoredAnswer(Report):
    """An answer, and how likely a reference answer was. Fidelity to the unpruned model is measured with it.

    Attributes
    ----------
    answer : the answer of the model.
    loss : mean negative log-likelihood of a token of the reference answer, in nats.
    first_token : float32 [vocab] on the CPU, log-probabilities of the first token of the answer.
    """

    answer: Answer
    loss: float
    first_token: Tensor = Field(exclude=True, repr=False)

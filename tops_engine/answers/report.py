"""What an answer says about itself: the text, the tokens each stage kept, measured times, FLOPs by formula, memory."""

from typing import Any

from pydantic import Field
from torch import Tensor

from tops_engine.answers.base import BaseAnswer, Report
from tops_engine.media.token_map import TokenMap


class StageUsage(Report):
    """From ``layer`` on, ``visual_tokens[i]`` tokens of picture or video i remained."""

    layer: int
    visual_tokens: list[int]


class Usage(Report):
    """Token counts of one answer.

    Attributes
    ----------
    prompt_tokens : of the unpruned prompt, visual tokens included.
    visual_tokens : of all pictures and videos, unpruned.
    stages : what remained of each picture and video, in the order of the prompt, from which layer on.
    layer_average : visual tokens a decoder layer saw on average, all of them together: the true budget.
    completion_tokens : written, the end token included.
    video_frames : how many frames of each video the model saw.
    reused_tokens : prompt tokens, of those that stage I left, that needed no reading in the first layers, as an earlier
        question began with them.
    """

    prompt_tokens: int
    visual_tokens: int
    stages: list[StageUsage]
    layer_average: float
    completion_tokens: int
    video_frames: list[int] = Field(default=[])
    reused_tokens: int = 0

    @property
    def input_tokens(self) -> int:
        """Tokens of the prompt that entered the language model: what pruning before it left."""
        entered = sum(self.stages[0].visual_tokens) if self.stages else 0
        return self.prompt_tokens - self.visual_tokens + entered

    @property
    def kept_fraction(self) -> float:
        """``layer_average`` of the visual tokens, 1.0 without images."""
        return self.layer_average / self.visual_tokens if self.visual_tokens else 1.0


class Timings(Report):
    """Measured seconds; those of a batch are the batch's.

    Attributes
    ----------
    prepare : chat template, tokenizer and image processor; reading video files comes before it.
    vision : vision tower and projector.
    selection : choosing tokens, all stages.
    prefill : reading the prompt, selection not included, up to the first token.
    decode : writing the other tokens.
    total : from the call to the last token.
    """

    prepare: float
    vision: float
    selection: float
    prefill: float
    decode: float
    total: float

    @property
    def first_token(self) -> float:
        """Seconds until the first token."""
        return self.prepare + self.vision + self.selection + self.prefill


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
    """One answer of the engine and everything that was measured on the way.

    Attributes
    ----------
    pruning : the options that ran, the method's included.
    kv_cache_bytes : keys and values held for this answer at its end.
    token_ids : what was written, the end token included. Not part of the JSON.
    token_map : which visual tokens remained, to draw. Not part of the JSON.
    """

    pruning: dict[str, Any]
    usage: Usage
    timings: Timings
    flops: Flops
    kv_cache_bytes: int
    token_ids: list[int] = Field(exclude=True, repr=False)
    token_map: TokenMap = Field(exclude=True, repr=False)


class ScoredAnswer(Report):
    """An answer, and how likely another one would have been: what fidelity to the unpruned model is made of.

    Attributes
    ----------
    answer : as the model wrote it.
    loss : mean negative log-likelihood a token of the reference answer, in nats.
    first_token : float32 [vocab] on the CPU, log-probabilities of the answer's first token.
    """

    answer: Answer
    loss: float
    first_token: Tensor = Field(exclude=True, repr=False)

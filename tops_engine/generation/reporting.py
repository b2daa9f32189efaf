"""The answers of a run with their counts and timings."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tops_engine.answers.base import StageUsage
from tops_engine.answers.report import (
    AllocationUsage,
    Answer,
    CostLimitUsage,
    Flops,
    FrameUsage,
    PictureUsage,
    Timings,
    TowerUsage,
    Usage,
)
from tops_engine.device.clock import Clock
from tops_engine.families import Family, Prompt
from tops_engine.generation.prefill import Segment
from tops_engine.generation.reuse import PromptReuse
from tops_engine.generation.running_mean import RunningMean
from tops_engine.generation.sequence import RunningSequence
from tops_engine.grounding.places import Places
from tops_engine.media.token_map import TokenMap
from tops_engine.methods import Positions, VisualTokens
from tops_engine.settings import Pruning
from tops_engine.settings.allocation import divides_budget


def read_timings(clock: Clock, prepare_seconds: float, began: float) -> Timings:
    """Return the measured seconds of a run that began at ``began`` (``time.perf_counter``)."""
    selection, allocation = clock.seconds("selection"), clock.seconds("allocation")
    return Timings(
        prepare=prepare_seconds,
        vision=clock.seconds("vision"),
        selection=selection + allocation,
        prefill=clock.seconds("prefill") - selection,
        decode=clock.seconds("decode"),
        total=time.perf_counter() - began,
    )


@dataclass(frozen=True)
class AnswerReport:
    """The builder of the answers of one run.

    Attributes
    ----------
    family, model_name, pruning : what ran.
    prompts : of all sequences.
    positions : how the kept tokens were numbered.
    segments : the layers of the decoder, grouped by the tokens they saw.
    images : the visual tokens of each picture and video of each sequence.
    vision_flops : of each sequence, the FLOPs of encoding its pictures.
    selection_flops : of each sequence, the FLOPs of rating and choosing visual tokens.
    reuse : what was taken over from earlier prompts.
    timings : the measured seconds of the run.
    cache_bytes : bytes that the engine keeps of this and earlier prompts and pictures.
    running : what the pictures of a stream got so far, if ``keep`` is their mean.
    limits : of each sequence, the budget that a limit of cost led to.
    """

    family: Family
    model_name: str
    pruning: Pruning
    prompts: Sequence[Prompt]
    positions: Positions
    segments: Sequence[Segment]
    images: Sequence[Sequence[VisualTokens]]
    vision_flops: Sequence[int]
    selection_flops: Sequence[int]
    reuse: PromptReuse
    timings: Timings
    cache_bytes: int
    running: RunningMean | None
    limits: Sequence[CostLimitUsage | None]

    def answer(self, index: int, sequence: RunningSequence) -> Answer:
        """Return the answer of the sequence at ``index`` of the batch."""
        decoder, num_new = self.family.decoder, len(sequence.token_ids)
        per_layer = self._tokens_per_layer(index)
        usage = self._usage(index, sequence, per_layer)
        places = self.family.places(sequence.prompt, sequence.marked_text)
        return Answer(
            text=sequence.text,
            reasoning=sequence.reasoning,
            finish_reason=sequence.finish_reason or "length",
            model=self.model_name,
            pruning=self.pruning.resolved() | {"positions": self.positions},
            usage=usage,
            timings=self.timings,
            flops=self._flops(index, sequence, per_layer),
            kv_cache_bytes=decoder.shape.kv_cache_bytes(per_layer, num_new - 1, decoder.dtype.itemsize),
            tool_calls=sequence.tool_calls,
            invalid_tool_calls=sequence.invalid_tool_calls,
            boxes=list(places.boxes),
            points=list(places.points),
            token_ids=sequence.token_ids,
            token_map=self._token_map(index, sequence, usage, places),
        )

    def _tokens_per_layer(self, index: int) -> list[int]:
        """Return the prompt tokens of one sequence in each decoder layer."""
        return [segment.lengths[index] for segment in self.segments for _ in range(segment.start, segment.end)]

    def _usage(self, index: int, sequence: RunningSequence, per_layer: Sequence[int]) -> Usage:
        prompt = sequence.prompt
        num_visual = sum(prompt.visual_tokens)
        num_text = len(prompt.input_ids) - sum(span.layout.num_tokens for span in prompt.spans)
        return Usage(
            prompt_tokens=num_text + num_visual,
            visual_tokens=num_visual,
            stages=[
                StageUsage(
                    layer=segment.start,
                    visual_tokens=[len(kept) for kept in segment.kept[index]],
                    rating_layer=segment.rating_layer,
                )
                for segment in self._stages(index)
            ],
            layer_average=sum(length - num_text for length in per_layer) / len(per_layer),
            completion_tokens=len(sequence.token_ids),
            reasoning_tokens=sequence.num_reasoning,
            video_frames=[len(video.frames) for video in prompt.videos],
            reused_tokens=self.reuse.num_tokens,
            cache_bytes=self.cache_bytes,
            pictures=self._pictures(index, prompt),
            allocation=self._allocation(),
            tower=self._tower(index),
            cost_limit=self.limits[index],
        )

    def _tower(self, index: int) -> TowerUsage | None:
        """Return what the vision tower did for one sequence, None if it ran as it is."""
        uses = [(image.tower, image.num_remaining) for image in self.images[index] if image.tower is not None]
        if not uses:
            return None
        return TowerUsage(
            patches=sum(use.patches for use, _ in uses),
            encoded=sum(use.encoded for use, _ in uses),
            kept_tokens=sum(remaining for _, remaining in uses),
            saved_flops=sum(use.saved_flops for use, _ in uses),
        )

    def _pictures(self, index: int, prompt: Prompt) -> list[PictureUsage]:
        """Return the counts of each picture and video of one sequence."""
        num_layers = self.segments[-1].end
        return [
            PictureUsage(
                visual_tokens=visual_tokens,
                keep=keep,
                layer_average=sum(
                    len(segment.kept[index][number]) * (segment.end - segment.start) for segment in self.segments
                )
                / num_layers,
                frames=self._frames(index, number, prompt.spans[number].layout.frame),
            )
            for number, (visual_tokens, keep) in enumerate(zip(prompt.visual_tokens, prompt.keeps, strict=True))
        ]

    def _frames(self, index: int, number: int, frame: Tensor | None) -> list[FrameUsage]:
        """Return the counts of each frame of a video; ``frame``: of each of its tokens, -1 for none."""
        if frame is None:
            return []
        sizes = frame[frame >= 0].bincount()
        layers = torch.zeros_like(sizes)
        for segment in self.segments:
            kept = frame[segment.kept[index][number].cpu()]
            layers += (segment.end - segment.start) * kept[kept >= 0].bincount(minlength=len(sizes))
        return [
            FrameUsage(frame=shown, visual_tokens=size, layer_average=seen / self.segments[-1].end)
            for shown, (size, seen) in enumerate(zip(sizes.tolist(), layers.tolist(), strict=True))
            if size
        ]

    def _allocation(self) -> AllocationUsage | None:
        """Return how the budget was divided among the pictures of the run, None if each has the same."""
        if not divides_budget(self.pruning):
            return None
        pictures = [
            picture
            for index, prompt in enumerate(self.prompts)
            for picture in self._pictures(index, prompt)
            if picture.keep is None
        ]
        shares = [picture.layer_average / picture.visual_tokens for picture in pictures]
        total = sum(picture.visual_tokens for picture in pictures)
        return AllocationUsage(
            allocation=self.pruning.allocation,
            budget_per=self.pruning.budget_per,
            pictures=len(pictures),
            mean=sum(picture.layer_average for picture in pictures) / total if total else 1.0,
            least=min(shares, default=1.0),
            most=max(shares, default=1.0),
            deviation=statistics.pstdev(shares) if shares else 0.0,
            stream=self.running.usage if self.running is not None else None,
        )

    def _flops(self, index: int, sequence: RunningSequence, per_layer: Sequence[int]) -> Flops:
        shape, first = self.family.decoder.shape, self.segments[0].end
        # Behind the last stage only the last token runs through layers that keep nothing.
        last = max(self.segments[-1].start, self.family.decoder.num_writing_layers)
        skipped = [
            length - 1 if layer >= last else self.reuse.num_tokens if layer < first else 0
            for layer, length in enumerate(per_layer)
        ]
        return Flops(
            vision=self.vision_flops[index],
            selection=self.selection_flops[index],
            prefill=shape.prefill_flops(per_layer, skipped) + shape.embedding_flops(len(sequence.prompt.input_ids)),
            decode=shape.decode_flops(per_layer, len(sequence.token_ids) - 1),
        )

    def _token_map(self, index: int, sequence: RunningSequence, usage: Usage, places: Places) -> TokenMap:
        prompt = sequence.prompt
        return TokenMap(
            prompt.visuals,
            [span.layout for span in prompt.spans],
            [(segment.start, [kept.cpu() for kept in segment.kept[index]]) for segment in self._stages(index)],
            self._title(usage),
            places,
        )

    def _stages(self, index: int) -> list[Segment]:
        """Return the first segment, and those at which this sequence, not only another of the batch, lost tokens."""
        counts = [[len(kept) for kept in segment.kept[index]] for segment in self.segments]
        return [
            segment
            for number, segment in enumerate(self.segments)
            if number == 0 or counts[number] != counts[number - 1]
        ]

    def _title(self, usage: Usage) -> str:
        if not usage.visual_tokens:
            return "No picture"
        return (
            f"{self.pruning.label}: {usage.layer_average:.1f} of {usage.visual_tokens} visual tokens "
            f"as a layer-average ({100 * usage.kept_fraction:.1f} %)"
        )

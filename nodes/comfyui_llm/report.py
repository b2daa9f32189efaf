"""The report of an answer that a model of ComfyUI wrote behind TOPS Prune LLM."""

from typing import Any

from pydantic import Field

from tops_engine.answers.base import BaseAnswer, StageUsage
from tops_engine.answers.report import PictureUsage, Timings, Usage
from tops_engine.generation.prefill import Segment
from tops_engine.media.token_map import TokenMap

from .prompt_run import PromptRun


class CoreAnswer(BaseAnswer):
    """An answer of ComfyUI's Generate Text and what was measured for it.

    Attributes
    ----------
    pruning : the options that ran, those of the method included.
    usage : the token counts.
    timings : the measured seconds; ``decode`` is the rest of the total.
    token_map : which visual tokens remained, to draw. Not part of the JSON.
    """

    pruning: dict[str, Any]
    usage: Usage
    timings: Timings
    token_map: TokenMap = Field(exclude=True, repr=False)

    def summary(self) -> str:
        usage, timings = self.usage, self.timings
        return "\n".join(
            [
                usage.visual_summary(),
                f"prompt {usage.prompt_tokens} tokens, answer {usage.completion_tokens} tokens",
                f"pictures {timings.vision:.3f} s, choosing tokens {timings.selection:.3f} s, prompt "
                f"{timings.prefill:.3f} s, {timings.total:.3f} s in total",
                f"model {self.model}, method {self.pruning['method']}",
            ]
        )


def answer_of(run: PromptRun, text: str) -> CoreAnswer:
    """Return the report of a finished run."""
    usage, stages = _usage(run), _stages(run)
    vision, selection = run.clock.seconds("vision"), run.clock.seconds("selection")
    prefill = max(run.clock.seconds("prefill") - selection, 0.0)
    share = f"{usage.layer_average:.1f} of {usage.visual_tokens} visual tokens as a layer-average"
    return CoreAnswer(
        text=text,
        finish_reason="stop",
        model=f"{run.model.kind} of ComfyUI ({run.model.name})",
        pruning=run.pruning.resolved(),
        usage=usage,
        timings=Timings(
            prepare=0.0,
            vision=vision,
            selection=selection,
            prefill=prefill,
            decode=max(run.seconds - vision - selection - prefill, 0.0),
            total=run.seconds,
        ),
        token_map=TokenMap(
            [picture.image for picture in run.pictures],
            [picture.layout for picture in run.pictures],
            [(segment.start, [kept.cpu() for kept in segment.kept[0]]) for segment in stages],
            f"{run.pruning.label}: {share} ({100 * usage.kept_fraction:.1f} %)" if run.pictures else "No picture",
        ),
    )


def _usage(run: PromptRun) -> Usage:
    num_layers = len(run.model.decoder.layers)
    sizes = [picture.layout.num_tokens for picture in run.pictures]
    averages = [float(size) for size in sizes]
    if run.reading is not None:
        averages = [
            sum(len(segment.kept[0][number]) * (segment.end - segment.start) for segment in run.reading.segments)
            / num_layers
            for number in range(len(sizes))
        ]
    return Usage(
        prompt_tokens=run.num_tokens,
        visual_tokens=sum(sizes),
        stages=[
            StageUsage(
                layer=segment.start,
                visual_tokens=[len(kept) for kept in segment.kept[0]],
                rating_layer=segment.rating_layer,
            )
            for segment in _stages(run)
        ]
        or [StageUsage(layer=0, visual_tokens=sizes)],
        layer_average=sum(averages),
        completion_tokens=len(run.token_ids),
        pictures=[
            PictureUsage(visual_tokens=size, keep=None, layer_average=average)
            for size, average in zip(sizes, averages, strict=True)
        ],
    )


def _stages(run: PromptRun) -> list[Segment]:
    """Return the first segment, and those at which tokens were dropped."""
    segments = run.reading.segments if run.reading is not None else []
    counts = [[len(kept) for kept in segment.kept[0]] for segment in segments]
    return [segment for number, segment in enumerate(segments) if number == 0 or counts[number] != counts[number - 1]]

"""One batch from conversations to answers: prepare, encode, prefill, decode, report."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tops_engine.answers.base import FinishReason
from tops_engine.answers.report import Answer, Flops, StageUsage, Timings, Usage
from tops_engine.budget import Stage
from tops_engine.conversation.messages import Conversation
from tops_engine.conversation.tools import BEGIN, Tools
from tops_engine.device.checks import deferred_checks
from tops_engine.device.clock import Clock
from tops_engine.errors import ContextLengthError
from tops_engine.families import Decoder, Family, Prompt
from tops_engine.generation.constraint import Constraint, json_grammar
from tops_engine.generation.decode import Decoding
from tops_engine.generation.prefill import EmbeddedPrompt, Prefill, Prefilled, Segment
from tops_engine.generation.prefix_cache import Prefix, PrefixCache, ReadPrompt, visual_digests, without_signals
from tops_engine.generation.prompts import PreparedPrompts
from tops_engine.generation.sampling import Sampler, TokensInTransit
from tops_engine.generation.static import StaticDecoding, StepPool
from tops_engine.generation.text_stream import TextStream
from tops_engine.generation.tool_calls import CallReader, tool_grammar
from tops_engine.media.token_map import TokenMap
from tops_engine.methods import Positions, VisualTokens
from tops_engine.settings import Generation, Pruning


class Run:
    """A batch on its way. Call :meth:`start` once, :meth:`step` until :attr:`done`, then :meth:`answers`, and
    :meth:`scores` if wanted.

    Parameters
    ----------
    family : the loaded model.
    model_name : as the caller called it, for the report.
    conversations, pruning, generation, tools : what is asked, and how.
    prefixes : earlier prompts; a single conversation goes on from the one it shares its beginning with.
    steps : writes the answer with recorded steps on static buffers; None runs the layers as they are.
    """

    def __init__(
        self,
        family: Family,
        model_name: str,
        conversations: Sequence[Conversation] | PreparedPrompts,
        pruning: Pruning,
        generation: Generation,
        tools: Tools | None = None,
        prefixes: PrefixCache | None = None,
        steps: StepPool | None = None,
    ) -> None:
        self._began = time.perf_counter()
        self._family = family
        self._model_name = model_name
        self._pruning = pruning
        self._positions = _numbering(family.decoder, pruning.resolved_positions)
        self._clock = Clock(family.decoder.device)
        begun = time.perf_counter()
        if not isinstance(conversations, PreparedPrompts):
            conversations = PreparedPrompts(family, conversations)
        self._prepared = conversations
        self._prompts = self._prepared.prompts
        self._stages = [self._plan(prompt) for prompt in self._prompts]
        pruning.build.check_model(model_name)
        rooms = [self._room(prompt, stages) for prompt, stages in zip(self._prompts, self._stages, strict=True)]
        self._max_new = [min(generation.max_tokens, room) for room in rooms]
        self._prefixes = prefixes if len(self._prompts) == 1 and not pruning.build.reads_question else None
        self._prefix: Prefix | None = None
        if self._prefixes is not None:
            self._digests = visual_digests(self._prompts[0])
            self._prefix = self._prefixes.find(self._prompts[0], self._digests, pruning, self._stages[0])
        self._prepare_seconds = time.perf_counter() - begun
        self._constraint = self._follow(generation, tools)
        self._steps = steps
        # A grammar looks at each token on the host before the next one can be chosen.
        self._runs_ahead = steps is not None and steps.runs_ahead and self._constraint is None
        self._ahead: TokensInTransit | None = None
        self._num_chosen = 0
        # A schema says where the answer ends; what looks like a stop string may be part of a text in it.
        stop = () if generation.json_schema is not None else generation.stop
        self._streams = [TextStream(family.tokenizer, stop, BEGIN if tools else None) for _ in self._prompts]
        self._readers = [CallReader() if tools else None for _ in self._prompts]
        self._token_ids: list[list[int]] = [[] for _ in self._prompts]
        self._finished: list[FinishReason | None] = [None] * len(self._prompts)
        self._sampler = Sampler(
            generation,
            family.model.generation_config.repetition_penalty or 1.0,
            [prompt.input_ids for prompt in self._prompts],
            family.decoder.device,
            self._constraint,
        )

    @property
    def done(self) -> bool:
        return all(reason is not None for reason in self._finished)

    @torch.inference_mode()
    def start(self) -> list[str]:
        """Read the prompts and write the first token of each answer; returns the new text of each."""
        with deferred_checks() as checks:
            images, prefilled = self._read_prompts()
            with self._clock("prefill"):
                tokens = self._choose(prefilled.logits)
        with self._clock("prefill"):
            # Here the host has to wait anyway.
            checks.settle()
            self._remember(images, prefilled)
            return self._read(tokens)

    @torch.inference_mode()
    def scores(self, references: Sequence[Sequence[int]]) -> list[tuple[float, Tensor]]:
        """How likely the model finds given answers after the pruned prompts, in place of what it wrote.

        Parameters
        ----------
        references : the tokens of an answer to each conversation.

        Returns
        -------
        Of each: mean negative log-likelihood a token, in nats; log-probabilities of the first token, float32 [vocab]
        on the CPU.
        """
        tokens = pad_sequence([torch.tensor(tokens) for tokens in references], batch_first=True, padding_value=-1)
        tokens = tokens.to(self._family.decoder.device)
        logits = self._first_logits[:, None]
        if tokens.shape[1] > 1:
            logits = torch.cat([logits, self._decoding.read_instead(tokens[:, :-1].clamp(min=0))], dim=1)
        totals = F.cross_entropy(logits.transpose(1, 2), tokens, ignore_index=-1, reduction="none").sum(dim=1)
        losses = (totals / (tokens >= 0).sum(dim=1)).tolist()
        return list(zip(losses, self._first_logits.log_softmax(dim=-1).cpu(), strict=True))

    def _read_prompts(self) -> tuple[list[list[VisualTokens]], Prefilled]:
        """Encode, prune and prefill."""
        decoder = self._family.decoder
        with self._clock("vision"):
            images = self._visual_tokens()
        embedded = [
            EmbeddedPrompt(
                prompt.input_ids, prompt.position_ids, [span.positions for span in prompt.spans], tokens, stages
            )
            for prompt, tokens, stages in zip(self._prompts, images, self._stages, strict=True)
        ]
        with self._clock("prefill"):
            method = self._pruning.build
            prefilled = Prefill(decoder, embedded, method, self._positions, self._clock, self._prefix).run()
            self._selection_flops = prefilled.selection_flops
            self._decoding = self._begin_decoding(prefilled)
        self._first_logits = prefilled.logits
        return images, prefilled

    def _begin_decoding(self, prefilled: Prefilled) -> Decoding | StaticDecoding:
        if self._steps is None:
            return Decoding(self._family.decoder, prefilled.cache, prefilled.segments)
        return StaticDecoding(self._steps, prefilled, max(self._max_new))

    def _visual_tokens(self) -> list[list[VisualTokens]]:
        """Of each image of each prompt; the vision tower rests where all pictures are known."""
        if self._prefix is not None and self._all_pictures_known:
            return [self._prefix.read.images[: self._prefix.num_images]]
        return self._prepared.visual_tokens(self._family)

    @property
    def _all_pictures_known(self) -> bool:
        return self._prefix is not None and self._prefix.num_images == len(self._prompts[0].spans)

    def _remember(self, images: list[list[VisualTokens]], prefilled: Prefilled) -> None:
        if self._prefixes is not None and prefilled.first_states is not None:
            read = ReadPrompt(
                # Its pictures and pixels would be kept for nothing.
                replace(self._prompts[0], images=[], videos=[], pixels={}),
                self._digests,
                self._pruning,
                self._stages[0],
                [without_signals(image) for image in images[0]],
                prefilled.stage_one[0],
                prefilled.first_states,
            )
            self._prefixes.store(read, self._prefix)

    @torch.inference_mode()
    def step(self) -> list[str]:
        """Write one more token of each answer that is not done; returns the new text of each.

        Where steps are recorded for a GPU the next one is launched before this one's tokens are read, so that the GPU
        works while the host turns tokens into text. The last of them may be for nothing: nobody reads it.
        """
        with self._clock("decode"):
            tokens = self._ahead or self._write()
            self._ahead = self._write() if self._runs_ahead and self._num_chosen < max(self._max_new) else None
            return self._read(tokens)

    def _write(self) -> TokensInTransit:
        return self._choose(self._decoding.step(self._next))

    def _choose(self, logits: Tensor) -> TokensInTransit:
        self._next = self._sampler(logits)
        self._num_chosen += 1
        return TokensInTransit(self._next)

    def cancel(self) -> list[str]:
        """Stop writing; returns the text still held back."""
        unfinished = [index for index, reason in enumerate(self._finished) if reason is None]
        self._finished = [reason or "cancelled" for reason in self._finished]
        return [self._visible(index, "") if index in unfinished else "" for index in range(len(self._prompts))]

    def answers(self) -> list[Answer]:
        """The report of each conversation."""
        selection = self._clock.seconds("selection")
        timings = Timings(
            prepare=self._prepare_seconds,
            vision=self._clock.seconds("vision"),
            selection=selection,
            prefill=self._clock.seconds("prefill") - selection,
            decode=self._clock.seconds("decode"),
            total=time.perf_counter() - self._began,
        )
        return [self._answer(index, timings) for index in range(len(self._prompts))]

    def _follow(self, generation: Generation, tools: Tools | None) -> Constraint | None:
        """The grammar the answers follow, if there is one."""
        tokenizer = self._family.tokenizer
        if tools is not None:
            grammar = tool_grammar(tools, tokenizer, generation.json_schema)
        elif generation.json_schema is not None:
            grammar = json_grammar(generation.json_schema)
        else:
            return None
        return Constraint(grammar, tokenizer, self._family.eos_token_ids, self._max_new)

    def _plan(self, prompt: Prompt) -> list[tuple[Stage, ...]]:
        num_layers = self._family.decoder.num_layers
        return [self._pruning.stages(span.layout.num_tokens, num_layers) for span in prompt.spans]

    def _room(self, prompt: Prompt, stages: list[tuple[Stage, ...]]) -> int:
        """How many tokens the model's context leaves for the answer."""
        length, limit = int(prompt.position_ids.max()) + 1, self._family.decoder.max_positions
        if self._positions == "contiguous":
            for span, plan in zip(prompt.spans, stages, strict=True):
                if plan[0].layer == 0:
                    length -= span.layout.num_tokens - plan[0].num_tokens
        if length >= limit:
            raise ContextLengthError(
                f"The prompt needs {length} positions and the model has {limit}; "
                "shorten the text, send fewer pictures or keep fewer tokens."
            )
        return limit - length

    def _read(self, tokens: TokensInTransit) -> list[str]:
        """Note the tokens just written; returns the new text of each answer."""
        pieces = []
        for index, token in enumerate(tokens.tolist()):
            pieces.append("" if self._finished[index] else self._visible(index, self._read_one(index, token)))
        return pieces

    def _read_one(self, index: int, token: int) -> str:
        """The text that is certain now."""
        stream, token_ids = self._streams[index], self._token_ids[index]
        token_ids.append(token)
        if token in self._family.eos_token_ids:
            self._finished[index] = "stop"
            return ""
        piece = stream.push(token)
        if stream.stopped or (self._constraint is not None and self._constraint.finished(index)):
            self._finished[index] = "stop"
        elif len(token_ids) >= self._max_new[index]:
            self._finished[index] = "length"
        return piece

    def _visible(self, index: int, text: str) -> str:
        """What of a new text is no function call. At the end nothing is held back."""
        reader, done = self._readers[index], self._finished[index] is not None
        if done:
            text += self._streams[index].finish()
        if reader is None:
            return text
        return reader.push(text) + (reader.finish() if done else "")

    def _answer(self, index: int, timings: Timings) -> Answer:
        prompt, decoder = self._prompts[index], self._family.decoder
        segments, num_new = self._decoding.segments, len(self._token_ids[index])
        per_layer = [segment.lengths[index] for segment in segments for _ in range(segment.start, segment.end)]
        stages = _stages(segments, index)
        num_visual = sum(span.layout.num_tokens for span in prompt.spans)
        num_text = len(prompt.input_ids) - num_visual
        num_reused = self._prefix.num_tokens if self._prefix is not None else 0
        usage = Usage(
            prompt_tokens=len(prompt.input_ids),
            visual_tokens=num_visual,
            stages=[
                StageUsage(layer=segment.start, visual_tokens=[len(kept) for kept in segment.kept[index]])
                for segment in stages
            ],
            layer_average=sum(length - num_text for length in per_layer) / len(per_layer),
            completion_tokens=num_new,
            video_frames=[len(video.frames) for video in prompt.videos],
            reused_tokens=num_reused,
        )
        reused = [num_reused] * segments[0].end + [0] * (decoder.num_layers - segments[0].end)
        flops = Flops(
            vision=0 if self._all_pictures_known else self._family.vision_flops(prompt),
            selection=self._selection_flops[index],
            prefill=decoder.shape.prefill_flops(per_layer, reused),
            decode=decoder.shape.decode_flops(per_layer, num_new - 1),
        )
        token_map = TokenMap(
            prompt.visuals,
            [span.layout for span in prompt.spans],
            [(segment.start, [kept.cpu() for kept in segment.kept[index]]) for segment in stages],
            self._title(usage),
        )
        reader = self._readers[index]
        return Answer(
            text=self._streams[index].text if reader is None else reader.text,
            finish_reason=self._finished[index] or "length",
            model=self._model_name,
            pruning=self._pruning.resolved() | {"positions": self._positions},
            usage=usage,
            timings=timings,
            flops=flops,
            kv_cache_bytes=decoder.shape.kv_cache_bytes(per_layer, num_new - 1, decoder.dtype.itemsize),
            tool_calls=reader.calls if reader else [],
            invalid_tool_calls=reader.invalid_calls if reader else [],
            token_ids=self._token_ids[index],
            token_map=token_map,
        )

    def _title(self, usage: Usage) -> str:
        if not usage.visual_tokens:
            return "No picture"
        return (
            f"{self._pruning.label}: {usage.layer_average:.1f} of {usage.visual_tokens} visual tokens "
            f"as a layer-average ({100 * usage.kept_fraction:.1f} %)"
        )


def _numbering(decoder: Decoder, positions: Positions) -> Positions:
    """How the remaining tokens are numbered. Tokens with 3-D coordinates keep them, as in the TOPS paper.

    There is no gap to close either: the text after a picture goes on from the picture's longer side, however many of
    its tokens there are.
    """
    return positions if decoder.position_axes == 1 else "original"


def _stages(segments: Sequence[Segment], index: int) -> list[Segment]:
    """The segments at which this sequence, and not only another one of its batch, lost tokens; and the first."""
    counts = [[len(kept) for kept in segment.kept[index]] for segment in segments]
    return [segment for number, segment in enumerate(segments) if number == 0 or counts[number] != counts[number - 1]]

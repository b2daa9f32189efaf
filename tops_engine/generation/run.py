"""Run one batch from conversations to answers: prepare, encode, prefill, decode, report."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from tops_engine.answers.base import Piece
from tops_engine.answers.report import Answer, CostLimitUsage
from tops_engine.conversation.messages import Conversation
from tops_engine.conversation.tools import Tools
from tops_engine.device.checks import deferred_checks
from tops_engine.device.clock import Clock
from tops_engine.device.cost_model import CostModel
from tops_engine.families import Family
from tops_engine.generation.answer_rules import AnswerRules
from tops_engine.generation.batch_state import EmbeddedPrompt
from tops_engine.generation.certainty import Certainty
from tops_engine.generation.cost_limit import Costs, plan_within
from tops_engine.generation.decode import Decoding
from tops_engine.generation.encoded_pictures import EncodedPictures, PromptPictures, saved_flops
from tops_engine.generation.planning import Group, check_remaining, numbering, plan_groups
from tops_engine.generation.prefill import Prefill, Prefilled
from tops_engine.generation.prefix_cache import PrefixCache, visual_digests
from tops_engine.generation.prompts import PreparedPrompts, prepare_prompts
from tops_engine.generation.reporting import AnswerReport, read_timings
from tops_engine.generation.reuse import PromptReuse
from tops_engine.generation.running_mean import RunningMean
from tops_engine.generation.sampling import Sampler, TokensInTransit
from tops_engine.generation.scoring import reference_logits, score_references
from tops_engine.generation.static import StaticDecoding, StepPool
from tops_engine.generation.token_writer import TokenWriter
from tops_engine.methods import VisualTokens
from tops_engine.settings import Generation, Pruning


class Run:
    """A batch of conversations while it is answered.

    Call :meth:`start` once, :meth:`step` until :attr:`done`, then :meth:`answers`, and :meth:`scores` if they are
    wanted.

    Parameters
    ----------
    family : the loaded model.
    model_name : the name of the model in the report.
    conversations, pruning, generation, tools : what is asked, and how.
    prefixes : earlier prompts; a single conversation continues from the one whose beginning it shares.
    encoded : earlier pictures and videos; a single conversation does not encode them again.
    steps : writes the answers with recorded steps on static buffers; None runs the layers as they are.
    certainty : notes how sure the model is of its first tokens, if anybody asks.
    running : what the pictures of earlier runs got, if ``keep`` is the mean of a stream.
    cost_model : the measured speed of the model, if a limit of time is asked for.

    Raises
    ------
    TopsError
        If the conversations do not fit the model, or the grammar of the answers cannot be followed.
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
        encoded: EncodedPictures | None = None,
        steps: StepPool | None = None,
        certainty: Certainty | None = None,
        running: RunningMean | None = None,
        cost_model: CostModel | None = None,
    ) -> None:
        self._began = time.perf_counter()
        family.check_tower(pruning.tower_options)
        self._family = family
        self._model_name = model_name
        self._pruning = pruning
        self._positions = numbering(family.decoder, pruning.resolved_positions)
        self._steps = steps
        self._clock = Clock(family.decoder.device)
        self._running = running
        begun = time.perf_counter()
        self._prepared = prepare_prompts(family, conversations, generation, pruning)
        prompt, alone = self._prepared.prompts[0], len(self._prepared) == 1
        digests = visual_digests(prompt) if alone and (prefixes is not None or encoded is not None) else []
        self._images: list[list[VisualTokens]] | None = None
        self._pictures: PromptPictures | None = None
        tower = pruning.tower_options
        if alone and encoded is not None and not self._prepared.is_encoded(tower):
            self._pictures = PromptPictures(family, prompt, digests, encoded, tower)
        self._prepare_seconds = time.perf_counter() - begun
        self._limits: list[CostLimitUsage | None] = [None] * len(self._prepared)
        groups = self._plan(generation, cost_model)
        begun = time.perf_counter()
        rules = AnswerRules(family, self._prepared.prompts, generation, tools)
        pruning.method_instance.check_model(model_name)
        self._sequences = rules.sequences(groups, self._positions)
        self._reuse = PromptReuse(
            prefixes if alone and self._is_reusable else None, prompt, digests, pruning, groups[0]
        )
        self._prepare_seconds += time.perf_counter() - begun
        self._constraint = rules.constraint([sequence.max_new for sequence in self._sequences])
        self._budget = rules.reasoning_budget()
        input_ids = [sequence.prompt.input_ids for sequence in self._sequences]
        penalty = family.model.generation_config.repetition_penalty or 1.0
        device = family.decoder.device
        self._sampler = Sampler(generation, penalty, input_ids, device, self._constraint, self._budget, certainty)

    @property
    def token_counts(self) -> list[int]:
        """The number of tokens of each answer so far."""
        return [len(sequence.token_ids) for sequence in self._sequences]

    @property
    def decode_seconds(self) -> float:
        """Seconds of writing so far, after the first token."""
        return self._clock.seconds("decode")

    @property
    def done(self) -> bool:
        return all(sequence.done for sequence in self._sequences)

    @torch.inference_mode()
    def start(self) -> list[list[Piece]]:
        """Read the prompts and write the first token of each answer; return the new pieces of each."""
        with deferred_checks() as checks:
            images, prefilled = self._read_prompts()
            with self._clock("prefill"):
                tokens = self._writer.choose(prefilled.logits)
        with self._clock("prefill"):
            # The host waits for the tokens anyway.
            checks.settle()
            if self._pictures is not None:
                self._pictures.store(images[0], prefilled.stage_one[0], self._pruning.method_instance)
            self._reuse.store(prefilled)
            return self._read(tokens)

    @torch.inference_mode()
    def step(self) -> list[list[Piece]]:
        """Write one more token of each answer that is not done; return the new pieces of each."""
        with self._clock("decode"):
            return self._read(self._writer.next())

    def cancel(self) -> list[list[Piece]]:
        """Stop writing; return what was held back of each answer."""
        return [sequence.cancel() for sequence in self._sequences]

    def abandon(self, index: int) -> None:
        """Stop writing one of the answers."""
        self._sequences[index].cancel()

    def prompts_of(self, indices: Sequence[int]) -> PreparedPrompts:
        """Return some of the prompts with their encoded pictures, once they are read."""
        assert self._images is not None
        return self._prepared.part(indices, self._pruning.tower_options, self._images)

    def answers(self, cache_bytes: int = 0) -> list[Answer]:
        """Return the answer to each conversation; ``cache_bytes`` is what the engine now keeps of earlier ones."""
        report = AnswerReport(
            self._family,
            self._model_name,
            self._pruning,
            self._prepared.prompts,
            self._positions,
            self._writer.decoding.segments,
            self._visual_tokens(),
            self._vision_flops(),
            self._selection_flops,
            self._reuse,
            read_timings(self._clock, self._prepare_seconds, self._began),
            cache_bytes,
            self._running,
            self._limits,
        )
        return [report.answer(index, sequence) for index, sequence in enumerate(self._sequences)]

    @torch.inference_mode()
    def scores(self, references: Sequence[Sequence[int]]) -> list[tuple[float, Tensor]]:
        """Score given answers in place of the written ones; see :func:`scoring.score_references`."""
        return score_references(self._writer.decoding, self._first_logits, references)

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the logits before each of the given tokens of an answer, float32 [q, vocab], of a single prompt."""
        rows = torch.tensor([list(tokens)], device=self._first_logits.device)
        return reference_logits(self._writer.decoding, self._first_logits, rows)[0]

    @property
    def _is_reusable(self) -> bool:
        """Whether a later question about the same pictures would keep the same tokens."""
        method = self._pruning.method_instance
        watched = method.watched_layers(self._family.decoder.num_layers)
        return not method.reads_question and not watched and self._pruning.rectify == "none"

    def _plan(self, generation: Generation, cost_model: CostModel | None) -> list[list[Group]]:
        """Return how many tokens of the pictures of each prompt are kept; an allocation reads the encoded pictures."""
        prompts, num_layers = self._prepared.prompts, self._family.decoder.num_layers
        if self._pruning.cost_limit is not None:
            limit, decoder = self._pruning.cost_limit, self._family.decoder
            each = [Costs(decoder, prompt, generation.max_tokens, cost_model) for prompt in prompts]
            planned = [plan_within(limit, self._pruning, costs) for costs in each]
            self._limits = [usage for _, usage in planned]
            return [groups for groups, _ in planned]
        # A budget that cannot be met is found before the pictures are encoded.
        groups = plan_groups(prompts, self._pruning, num_layers)
        if self._pruning.allocation == "fixed" or not any(prompt.spans for prompt in prompts):
            return groups
        with torch.inference_mode():
            images = self._visual_tokens()
            with self._clock("allocation"):
                return plan_groups(prompts, self._pruning, num_layers, images, self._running)

    def _read_prompts(self) -> tuple[list[list[VisualTokens]], Prefilled]:
        """Encode, prune and prefill.

        Returns
        -------
        The visual tokens of each image of each prompt; what the prefill computed.
        """
        images = self._visual_tokens()
        for sequence, tokens in zip(self._sequences, images, strict=True):
            check_remaining(sequence.groups, tokens, self._pruning.tower_keep)
        embedded = [
            EmbeddedPrompt(
                sequence.prompt.input_ids,
                sequence.prompt.position_ids,
                [span.positions for span in sequence.prompt.spans],
                tokens,
                sequence.groups,
            )
            for sequence, tokens in zip(self._sequences, images, strict=True)
        ]
        with self._clock("prefill"):
            decoder, method = self._family.decoder, self._pruning.method_instance
            prefix, merge = self._reuse.prefix, self._pruning.merge
            rectify = self._pruning.rectify
            recorded = self._steps.prompts if self._steps is not None else None
            prefill = Prefill(decoder, embedded, method, self._positions, self._clock, prefix, merge, rectify, recorded)
            prefilled = prefill.run()
            self._writer = self._begin_writing(prefilled)
        self._selection_flops = prefilled.selection_flops
        self._first_logits = prefilled.logits
        return images, prefilled

    def _visual_tokens(self) -> list[list[VisualTokens]]:
        """Return the tokens of each image of each prompt; of a single prompt only new pictures are encoded."""
        if self._images is None:
            with self._clock("vision"):
                if self._pictures is not None:
                    self._images = [self._pictures.visual_tokens()]
                else:
                    self._images = self._prepared.visual_tokens(self._family, self._pruning.tower_options)
        return self._images

    def _vision_flops(self) -> list[int]:
        """Return the FLOPs of encoding the pictures of each prompt."""
        if self._pictures is not None:
            return [self._pictures.vision_flops]
        whole = [self._family.vision_flops(sequence.prompt) for sequence in self._sequences]
        return [flops - saved_flops(images) for flops, images in zip(whole, self._visual_tokens(), strict=True)]

    def _begin_writing(self, prefilled: Prefilled) -> TokenWriter:
        max_new = max(sequence.max_new for sequence in self._sequences)
        if self._steps is None:
            decoding = Decoding(self._family.decoder, prefilled.cache, prefilled.segments)
            return TokenWriter(decoding, self._sampler, max_new)
        # A grammar and a budget of reasoning need each token on the host before the next one can be chosen.
        runs_ahead = self._steps.runs_ahead and self._constraint is None and self._budget is None
        return TokenWriter(StaticDecoding(self._steps, prefilled, max_new), self._sampler, max_new, runs_ahead)

    def _read(self, tokens: TokensInTransit) -> list[list[Piece]]:
        """Note the tokens just written; return the new pieces of each answer."""
        return [
            sequence.push(token, self._constraint is not None and self._constraint.finished(index))
            for index, (sequence, token) in enumerate(zip(self._sequences, tokens.tolist(), strict=True))
        ]

"""The engine on this machine: a loaded model that answers questions about pictures, with pruning."""

import itertools
import threading
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from tops_engine.answers.base import Piece
from tops_engine.answers.report import Answer, ScoredAnswer
from tops_engine.contract import ChatEngine, Request
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.conversation.tools import Tools
from tops_engine.device.cost_model import CostModel, read_cost_model
from tops_engine.errors import InvalidInput, OutOfMemory, quote, shorten
from tops_engine.generation.cascade import CascadeRun, Conversations
from tops_engine.generation.certainty import Certainty
from tops_engine.generation.prompts import PreparedPrompts
from tops_engine.generation.run import Run
from tops_engine.generation.running_mean import RunningMean
from tops_engine.loaded_model import LoadedModel
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.text import valid_text


class Engine(LoadedModel, ChatEngine[Answer]):
    """A model on this machine. Safe to use from several threads.

    ``Engine(spec)`` loads the model at the first question, ``Engine.load(spec)`` loads it now, and
    ``shared_engine(spec)`` returns the same engine to all callers in the process.

    Parameters
    ----------
    spec : which checkpoint to load, where and how.

    Raises
    ------
    InvalidInput
        If the machine does not have the device.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._means: dict[Pruning, RunningMean] = defaultdict(RunningMean)

    @classmethod
    def load(cls, spec: ModelSpec) -> "Engine":
        """Load the model now; see :func:`tops_engine.loading.load_family` for what it raises."""
        engine = cls(spec)
        _ = engine.family
        return engine

    def run(self, requests: Sequence[Request], cancel: threading.Event | None = None) -> list[Answer]:
        """Answer requests; those that follow each other with equal settings are answered together."""
        answers: list[Answer] = []
        for _, group in itertools.groupby(requests, lambda one: (one.pruning, one.generation, one.tools)):
            steps = self._steps(list(group), cancel)
            while True:
                try:
                    next(steps)
                except StopIteration as finished:
                    answers += finished.value
                    break
        return answers

    def run_stream(self, request: Request, cancel: threading.Event | None = None) -> Iterator[Piece | Answer]:
        steps = self._steps([request], cancel)
        while True:
            try:
                (pieces,) = next(steps)
            except StopIteration as finished:
                yield finished.value[0]
                return
            yield from pieces

    def prepare(self, conversations: Sequence[Sequence[Message]]) -> PreparedPrompts:
        """Prepare conversations that :meth:`scored_batch` asks several times, so that their pictures are encoded once.

        The result holds the features of the pictures in the memory of the device as long as it exists.
        """
        read = [read_conversation(messages) for messages in conversations]
        with self._working():
            return PreparedPrompts(self._ready_family(), read)

    def scored_batch(
        self,
        conversations: Sequence[Sequence[Message]] | PreparedPrompts,
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        references: Sequence[Sequence[int]] | None = None,
    ) -> list[ScoredAnswer]:
        """Answer conversations and score reference answers, reading each prompt once.

        With the answers of the unpruned model as ``references`` this measures fidelity to it (figure 2 of the paper).

        Parameters
        ----------
        conversations : as for :meth:`batch`, or the result of :meth:`prepare`; the timings then exclude preparation
            and vision if these were done before.
        references : the ``token_ids`` of an answer to each conversation; None takes the answers written here.

        Raises
        ------
        InvalidInput
            If there is not one reference with at least one token for each conversation.
        TopsError
            As :meth:`chat`.
        """
        if references is not None and (len(references) != len(conversations) or not all(map(len, references))):
            raise InvalidInput("references are the tokens of one answer to each conversation, at least one token each.")
        read: Conversations
        if isinstance(conversations, PreparedPrompts):
            read = conversations
        else:
            read = [read_conversation(messages) for messages in conversations]
        pruning, generation = pruning or Pruning(), generation or Generation()
        run: Run | CascadeRun | None = None
        try:
            with self._working():
                run = self._begin(read, pruning, generation)
                run.start()
                while not run.done:
                    run.step()
                answers = run.answers()
                scores = run.scores(references or [answer.token_ids for answer in answers])
        except OutOfMemory:
            run = None
            raise
        return [
            ScoredAnswer(answer=answer, loss=loss, first_token=first_token)
            for answer, (loss, first_token) in zip(answers, scores, strict=True)
        ]

    def answer_logits(self, messages: Sequence[Message], pruning: Pruning, tokens: Sequence[int]) -> Tensor:
        """Return the logits that the model has before each token of a given answer.

        Parameters
        ----------
        tokens : of the answer, at least one.

        Returns
        -------
        float32 [len(tokens), vocab] on the CPU.

        Raises
        ------
        TopsError
            As :meth:`chat`.
        """
        read = [read_conversation(messages)]
        with self._working():
            run = self._begin(read, pruning, Generation(max_tokens=1))
            if isinstance(run, CascadeRun):
                raise InvalidInput("The logits of an answer are those of one budget; give keep a single value.")
            run.start()
            return run.logits(tokens).cpu()

    def restart_streams(self) -> None:
        """Begin the running means of all streams anew (``Pruning(mean_over="stream")``)."""
        with self._lock:
            self._means.clear()

    def count_tokens(self, messages: Sequence[Message], tools: Tools | None = None) -> int:
        read = read_conversation(messages, tools, partial=True)
        if not read.messages:
            return 0
        with self._working():
            return len(self._ready_family().prepare(read).input_ids)

    def count_visual_tokens(self, width: int, height: int) -> int:
        read = read_conversation([user_message(None, Image.new("RGB", (width, height)))], partial=True)
        with self._working():
            (span,) = self._ready_family().prepare(read).spans
        return span.layout.num_tokens

    def tokenize(self, text: str) -> list[int]:
        return list(self.family.tokenizer.encode(valid_text(text), add_special_tokens=False))

    def _steps(
        self, requests: Sequence[Request], cancel: threading.Event | None
    ) -> Generator[list[list[Piece]], None, list[Answer]]:
        """Answer requests with equal settings: yield the new pieces of each answer at each step, return the answers."""
        pruning, generation, tools = requests[0].pruning or Pruning(), requests[0].generation, requests[0].tools
        read = [read_conversation(request.messages, tools) for request in requests]
        run: Run | CascadeRun | None = None
        try:
            with self._working():
                run = self._begin(
                    read, pruning, generation, tools=tools, prefixes=self._prefixes, encoded=self._encoded
                )
                pieces = run.start()
            yield pieces
            while not run.done:
                if cancel is not None and cancel.is_set():
                    yield run.cancel()
                    break
                with self._working():
                    self._ready_family()
                    pieces = run.step()
                yield pieces
            return run.answers(self.cache_bytes)
        except OutOfMemory:
            # The traceback of the error holds this frame; its tensors must not live as long as the error.
            run = None
            raise

    def _begin(
        self,
        conversations: Conversations,
        pruning: Pruning,
        generation: Generation,
        **options: Any,
    ) -> Run | CascadeRun:
        """Begin a run; ``options`` are those of :class:`Run`. Call this with the lock of the device held."""
        family = self._ready_family()
        cost_model = self._cost_model(len(conversations)) if pruning.first_token_ms is not None else None
        steps = self._step_pool(family)

        def begin(conversations: Conversations, pruning: Pruning, certainty: Certainty | None) -> Run:
            options_of_run = options | {"steps": steps, "certainty": certainty, "cost_model": cost_model}
            running = self._means[pruning] if pruning.mean_over == "stream" else None
            return Run(family, self.spec.model, conversations, pruning, generation, running=running, **options_of_run)

        if len(pruning.steps) > 1:
            return CascadeRun(begin, conversations, pruning)
        return begin(conversations, pruning, None)

    def _cost_model(self, num_conversations: int) -> CostModel:
        """Return the measured speed of the model on the device."""
        if num_conversations > 1:
            raise InvalidInput(
                "first_token_ms is about a question that is asked alone, and this batch has "
                f"{num_conversations}; ask one at a time, or give flops."
            )
        found = read_cost_model(self.cost_key)
        if found is None:
            raise InvalidInput(
                f"first_token_ms needs the speed of {quote(self.spec.model)} on this device, which was not measured "
                f"yet; run `tops doctor --measure --model {shorten(self.spec.model)}` once."
            )
        return found


_engines: dict[ModelSpec, Engine] = {}
_engines_lock = threading.Lock()


def unload_shared_engines() -> None:
    """Free the memory of all models in the process; the next question loads its model again."""
    with _engines_lock:
        engines = list(_engines.values())
    for engine in engines:
        engine.unload()


def shared_cache_bytes() -> int:
    """Return how many bytes all shared engines of the process keep of earlier prompts and pictures."""
    with _engines_lock:
        engines = list(_engines.values())
    return sum(engine.cache_bytes for engine in engines)


def shared_engine(spec: ModelSpec) -> Engine:
    """Return the one engine of the process for a spec. Its model loads at the first question."""
    with _engines_lock:
        if spec not in _engines:
            _engines[spec] = Engine(spec)
        return _engines[spec]

"""The engine on this machine: a loaded model that answers questions about pictures, with pruning."""

import itertools
import threading
import traceback
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tops_engine.answers.base import Piece
from tops_engine.answers.report import Answer, ScoredAnswer
from tops_engine.contract import ChatEngine, Request
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.conversation.tools import Tools
from tops_engine.device.cost_model import CostModel, read_cost_model
from tops_engine.device.machine import machine
from tops_engine.device.memory import CacheLimits, default_cache_bytes, give_back_memory, is_out_of_memory
from tops_engine.errors import InvalidInput, OutOfMemory, quote, shorten
from tops_engine.families import Family
from tops_engine.generation.cascade import CascadeRun, Conversations
from tops_engine.generation.certainty import Certainty
from tops_engine.generation.encoded_pictures import EncodedPictures
from tops_engine.generation.prefix_cache import PrefixCache
from tops_engine.generation.prompts import PreparedPrompts
from tops_engine.generation.run import Run
from tops_engine.generation.running_mean import RunningMean
from tops_engine.generation.static import StepPool
from tops_engine.loading import is_quantised, load_family, resolve_device
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.text import valid_text

# One lock per device orders the work of all engines on it. It is held for one step (reading a prompt, writing a token),
# not for a whole answer: several streams advance side by side, and an abandoned stream blocks nothing.
_device_locks: dict[torch.device, threading.RLock] = defaultdict(threading.RLock)


class Engine(ChatEngine[Answer]):
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
        self.spec = spec
        self.device = resolve_device(spec.device)
        self._lock = _device_locks[self.device]
        self._family: Family | None = None
        self._prefixes = PrefixCache(max_bytes=0)  # the bound follows when the size of the weights is known
        self._encoded = EncodedPictures(max_bytes=0)
        self._pool: StepPool | None = None
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

    def forget(self) -> None:
        """Drop what was kept of earlier prompts, so that the next prompt is read from its beginning.

        Otherwise a prompt about pictures that were asked about before is read from where the two prompts differ.
        """
        with self._working():
            self._drop_states()
            if self._family is not None:
                self._family.forget_pictures()
        give_back_memory(self.device)

    @property
    def cache_bytes(self) -> int:
        """Bytes that are kept of earlier prompts and pictures; ``ModelSpec(cache_mb=...)`` bounds them."""
        with self._lock:
            pictures = self._family.picture_bytes if self._family is not None else 0
            steps = self._pool.idle_bytes if self._pool is not None else 0
            return pictures + self._encoded.num_bytes + self._prefixes.num_bytes + steps

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

    def unload(self) -> None:
        """Free the memory of the model; the next question loads it again."""
        with self._working():
            self._drop_states()
            self._family = self._pool = None
        give_back_memory(self.device)

    def offload(self) -> None:
        """Move the weights to main memory; the next question moves them back to the device.

        Quantised weights are tied to their device and are unloaded instead.
        """
        with self._working():
            self._drop_states()
            if self._family is not None and self.is_quantised:
                self._family = self._pool = None
            elif self._family is not None:
                self._family.to(torch.device("cpu"))
        give_back_memory(self.device)

    def load_at_rest(self) -> Family:
        """Return the loaded model without moving its weights; a model that is not loaded goes to main memory.

        Use this in a host that decides itself when weights move to the device, as ComfyUI does. Quantised weights are
        tied to their device and load there.
        """
        with self._working():
            if self._family is None:
                return self.use(load_family(self.spec, None if self.is_quantised else torch.device("cpu")))
            return self._family

    @cached_property
    def is_quantised(self) -> bool:
        """Whether the weights are quantised, by the spec or in the checkpoint, so that they stay where they load."""
        return is_quantised(self.spec)

    @property
    def family(self) -> Family:
        """The loaded model; it loads at the first use."""
        with self._working():
            return self._ready_family()

    @contextmanager
    def working_family(self) -> Iterator[Family]:
        """Hold the device in a block, and give it the loaded model; for work that is no answer.

        Raises
        ------
        OutOfMemory
            If the device has too little memory for the block.
        """
        with self._working():
            yield self._ready_family()

    @property
    def cost_key(self) -> dict[str, Any]:
        """What the speed of the model depends on: what was loaded how, the device and its threads."""
        facts = machine(str(self.device))
        on = {name: facts[name] for name in ("cpu", "threads", "torch", "gpu") if name in facts}
        options = self.spec.model_dump(mode="json", exclude={"device", "dtype", "cache_mb"})
        return options | {"device": self.device.type, "dtype": str(self.family.decoder.dtype)} | on

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are on the device now."""
        return self._family is not None and self._family.decoder.device == self.device

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

    def _ready_family(self) -> Family:
        """Return the family with its weights on the device; call this with the lock of the device held."""
        if self._family is None:
            return self.use(load_family(self.spec))
        if self._family.decoder.device != self.device:
            self._family.to(self.device)
        return self._family

    def use(self, family: Family) -> Family:
        """Use a family that was loaded for this engine's spec, and bound its caches."""
        limits = self._cache_limits(family)
        family.limit_pictures(limits.pictures)
        self._encoded.limit(limits.encoded)
        self._prefixes.limit(limits.prompts)
        self._family = family
        return family

    def _cache_limits(self, family: Family) -> CacheLimits:
        if self.spec.cache_mb is not None:
            return CacheLimits.of(int(self.spec.cache_mb * 2**20), self.spec.compile)
        return CacheLimits.of(default_cache_bytes(self.device, family.weight_bytes), self.spec.compile)

    def _step_pool(self, family: Family) -> StepPool | None:
        """Return the recorded steps of the loaded model, None unless the spec compiles."""
        if self.spec.compile and (self._pool is None or self._pool.decoder is not family.decoder):
            self._pool = StepPool(family.decoder, max_idle_bytes=self._cache_limits(family).steps)
        return self._pool

    def _drop_states(self) -> None:
        """Drop everything that earlier prompts left on the device."""
        self._encoded.clear()
        self._prefixes.clear()
        if self._pool is not None:
            self._pool.clear()

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Hold the lock of the device; turn a lack of memory into an OutOfMemory error that keeps no tensors alive."""
        with self._lock:
            try:
                yield
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                # The frames of the failed call hold its tensors.
                traceback.clear_frames(error.__traceback__)
                self._drop_states()
                give_back_memory(self.device)
                raise OutOfMemory(
                    f"{self.device} ran out of memory; send fewer or smaller pictures, keep fewer tokens, "
                    "or load the model quantised."
                ) from None


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

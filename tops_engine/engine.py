"""The engine: a loaded model that answers questions about pictures, with pruning."""

import threading
import traceback
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch

from tops_engine.answers.report import Answer, ScoredAnswer
from tops_engine.conversation.messages import Conversation, Message, read_conversation
from tops_engine.conversation.tools import Tools
from tops_engine.errors import InvalidInput, OutOfMemory
from tops_engine.families import Family
from tops_engine.generation.prefix_cache import PrefixCache
from tops_engine.generation.prompts import PreparedPrompts
from tops_engine.generation.run import Run
from tops_engine.generation.static import StepPool
from tops_engine.loading import load_family, resolve_device
from tops_engine.settings import Generation, ModelSpec, Pruning

# One lock a device orders the work of all engines on it. It is held for a step (reading a prompt, writing one token),
# not for an answer: several streams advance side by side, and an abandoned one blocks nobody.
_device_locks: dict[torch.device, threading.RLock] = defaultdict(threading.RLock)


class Engine:
    """A model that answers. Safe to use from several threads.

    ``Engine(spec)`` loads at the first question, ``Engine.load(spec)`` at once; ``shared_engine(spec)`` gives everybody
    in the process the same one.

    Parameters
    ----------
    spec : which checkpoint, where and how.

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
        self._prefixes = PrefixCache(self.device)
        self._pool: StepPool | None = None

    @classmethod
    def load(cls, spec: ModelSpec) -> "Engine":
        """Load the model now; see :func:`tops_engine.loading.load_family` for what it raises."""
        engine = cls(spec)
        _ = engine.family
        return engine

    def chat(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> Answer:
        """Answer one conversation.

        Parameters
        ----------
        messages : ``[{"role": "user", "content": [{"type": "image", "image": path}, {"type": "text", "text": ...}]}]``;
            ``user_message`` writes one.
        pruning : which visual tokens to keep; ``Pruning(keep=1.0)`` is the model itself.
        generation : length, sampling, stop strings.
        cancel : set it from another thread to stop within one token; the answer so far is returned.
        tools : functions the model may call. Calls come back in the answer; results go into the conversation as
            ``{"role": "tool", "content": ...}`` after the assistant's message with its ``tool_calls``.

        Raises
        ------
        TopsError
            One of ``tops_engine.errors``; the engine stays usable.
        """
        return self.batch([messages], pruning, generation, cancel, tools)[0]

    def batch(
        self,
        conversations: Sequence[Sequence[Message]],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> list[Answer]:
        """Answer several conversations together; they may differ in length and number of pictures."""
        if not conversations:
            return []
        steps = self._steps(conversations, pruning or Pruning(), generation or Generation(), cancel, tools)
        while True:
            try:
                next(steps)
            except StopIteration as finished:
                return list(finished.value)

    def stream(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> Iterator[str | Answer]:
        """Answer one conversation piece by piece: texts as they become certain, then the :class:`Answer`."""
        steps = self._steps([messages], pruning or Pruning(), generation or Generation(), cancel, tools)
        while True:
            try:
                (piece,) = next(steps)
            except StopIteration as finished:
                yield finished.value[0]
                return
            if piece:
                yield piece

    def prepare(self, conversations: Sequence[Sequence[Message]]) -> PreparedPrompts:
        """Read conversations that :meth:`scored_batch` is to ask several times: their pictures are encoded once.

        The result holds the pictures' features in the device's memory for as long as it is kept.
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
        """Answer, and say how likely given answers would have been, in one reading of the prompts.

        With the unpruned model's answers as ``references`` this measures fidelity to it (the paper's figure 2).

        Parameters
        ----------
        conversations : as for :meth:`batch`, or what :meth:`prepare` made of them; the times of the answers hold
            neither preparation nor vision where these were done before.
        references : the ``token_ids`` of an answer to each conversation; None takes those written here.

        Raises
        ------
        TopsError
            As :meth:`chat`.
        """
        if references is not None and (len(references) != len(conversations) or not all(map(len, references))):
            raise InvalidInput("references are the tokens of one answer to each conversation, at least one token each.")
        read: list[Conversation] | PreparedPrompts
        if isinstance(conversations, PreparedPrompts):
            read = conversations
        else:
            read = [read_conversation(messages) for messages in conversations]
        pruning, generation = pruning or Pruning(), generation or Generation()
        run: Run | None = None
        try:
            with self._working():
                family = self._ready_family()
                run = Run(family, self.spec.model, read, pruning, generation, steps=self._step_pool(family))
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

    def forget(self) -> None:
        """Drop what was kept of earlier prompts: the next question is read from its beginning, as at first.

        Otherwise, asking again about pictures that were asked about before goes on from where the prompts differ.
        """
        with self._working():
            self._drop_states()
            if self._family is not None:
                self._family.forget_pictures()

    def count_tokens(self, messages: Sequence[Message], tools: Tools | None = None) -> int:
        """Tokens of a prompt before pruning, pictures and chat template included.

        ``messages`` may be a part of a conversation: nothing need be asked, and results may lack their calls.
        """
        read = read_conversation(messages, tools, partial=True)
        with self._working():
            return len(self._ready_family().prepare(read).input_ids)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, without those that mark its beginning or end."""
        return list(self.family.tokenizer.encode(text, add_special_tokens=False))

    def unload(self) -> None:
        """Give the model's memory back; the next question loads it again."""
        with self._working():
            self._drop_states()
            self._family = self._pool = None
        _free_cached_memory(self.device)

    def offload(self) -> None:
        """Move the weights to main memory; the next question brings them back to the device.

        Quantised weights are tied to their device: they are unloaded.
        """
        with self._working():
            self._drop_states()
            if self.spec.quantization is not None:
                self._family = self._pool = None
            elif self._family is not None:
                self._family.to(torch.device("cpu"))
        _free_cached_memory(self.device)

    def load_at_rest(self) -> Family:
        """The loaded model wherever its weights lie; if it is not loaded, they go to main memory, not to the device.

        For a host that decides itself when weights move to the device, as ComfyUI does. Quantised weights are tied to
        their device and go there.
        """
        with self._working():
            if self._family is None:
                self._family = load_family(self.spec, None if self.spec.quantization else torch.device("cpu"))
            return self._family

    @property
    def family(self) -> Family:
        """The loaded model; loads it if it is not."""
        with self._working():
            return self._ready_family()

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are on the device right now."""
        return self._family is not None and self._family.decoder.device == self.device

    def _steps(
        self,
        conversations: Sequence[Sequence[Message]],
        pruning: Pruning,
        generation: Generation,
        cancel: threading.Event | None,
        tools: Tools | None,
    ) -> Generator[list[str], None, list[Answer]]:
        """Each new piece of text of each answer; the generator's value is the list of answers."""
        read = [read_conversation(messages, tools) for messages in conversations]
        run: Run | None = None
        try:
            with self._working():
                family = self._ready_family()
                steps = self._step_pool(family)
                run = Run(family, self.spec.model, read, pruning, generation, tools, self._prefixes, steps)
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
            return run.answers()
        except OutOfMemory:
            # The error's traceback holds this frame; the tensors must not live as long as somebody looks at it.
            run = None
            raise

    def _ready_family(self) -> Family:
        """The family with its weights on the device; call it with the device's lock held."""
        if self._family is None:
            self._family = load_family(self.spec)
        elif self._family.decoder.device != self.device:
            self._family.to(self.device)
        return self._family

    def _step_pool(self, family: Family) -> StepPool | None:
        """The recorded steps of the loaded model, if the spec wants them."""
        if self.spec.compile and (self._pool is None or self._pool.decoder is not family.decoder):
            self._pool = StepPool(family.decoder)
        return self._pool

    def _drop_states(self) -> None:
        """Drop all that earlier prompts left on the device."""
        self._prefixes.clear()
        if self._pool is not None:
            self._pool.clear()

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Hold the device; turn its lack of memory into an error that leaves nothing behind."""
        with self._lock:
            try:
                yield
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                # The frames of the failed call hold its tensors.
                traceback.clear_frames(error.__traceback__)
                self._drop_states()
                _free_cached_memory(self.device)
                raise OutOfMemory(
                    f"{self.device} ran out of memory; send fewer or smaller pictures, keep fewer tokens, "
                    "or load the model quantised."
                ) from None


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _free_cached_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


_engines: dict[ModelSpec, Engine] = {}
_engines_lock = threading.Lock()


def unload_shared_engines() -> None:
    """Give the memory of all models in the process back; whoever asks next loads again."""
    with _engines_lock:
        engines = list(_engines.values())
    for engine in engines:
        engine.unload()


def shared_engine(spec: ModelSpec) -> Engine:
    """The process's one engine for a spec. It loads at its first question."""
    with _engines_lock:
        if spec not in _engines:
            _engines[spec] = Engine(spec)
        return _engines[spec]

"""The engine: a loaded model that answers questions about pictures, with pruning."""

import threading
import traceback
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch

from tops_engine.errors import OutOfMemory
from tops_engine.families import Family
from tops_engine.generation.run import Run
from tops_engine.loading import load_family, resolve_device
from tops_engine.messages import Message, read_conversation
from tops_engine.report import Answer
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
    ) -> Answer:
        """Answer one conversation.

        Parameters
        ----------
        messages : ``[{"role": "user", "content": [{"type": "image", "image": path}, {"type": "text", "text": ...}]}]``;
            ``user_message`` writes one.
        pruning : which visual tokens to keep; ``Pruning(keep=1.0)`` is the model itself.
        generation : length, sampling, stop strings.
        cancel : set it from another thread to stop within one token; the answer so far is returned.

        Raises
        ------
        TopsError
            One of ``tops_engine.errors``; the engine stays usable.
        """
        return self.batch([messages], pruning, generation, cancel)[0]

    def batch(
        self,
        conversations: Sequence[Sequence[Message]],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Answer]:
        """Answer several conversations together; they may differ in length and number of pictures."""
        if not conversations:
            return []
        steps = self._steps(conversations, pruning or Pruning(), generation or Generation(), cancel)
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
    ) -> Iterator[str | Answer]:
        """Answer one conversation piece by piece: texts as they become certain, then the :class:`Answer`."""
        steps = self._steps([messages], pruning or Pruning(), generation or Generation(), cancel)
        while True:
            try:
                (piece,) = next(steps)
            except StopIteration as finished:
                yield finished.value[0]
                return
            if piece:
                yield piece

    def answer_losses(
        self,
        conversations: Sequence[Sequence[Message]],
        answers: Sequence[Sequence[int]],
        pruning: Pruning | None = None,
    ) -> list[float]:
        """How unlikely the pruned model finds given answers: the fidelity measure of the paper's figure 2.

        Parameters
        ----------
        answers : the ``token_ids`` of an answer to each conversation, such as the unpruned model's own.

        Returns
        -------
        Mean negative log-likelihood a token, in nats, of each answer.
        """
        read = [read_conversation(messages) for messages in conversations]
        with self._working():
            run = Run(self._ready_family(), self.spec.model, read, pruning or Pruning(), Generation())
            return run.losses(answers)

    def unload(self) -> None:
        """Give the model's memory back; the next question loads it again."""
        with self._working():
            self._family = None
        _free_cached_memory(self.device)

    def offload(self) -> None:
        """Move the weights to main memory; the next question brings them back to the device.

        Quantised weights are tied to their device: they are unloaded.
        """
        with self._working():
            if self.spec.quantization is not None:
                self._family = None
            elif self._family is not None:
                self._family.model.to("cpu")
        _free_cached_memory(self.device)

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
    ) -> Generator[list[str], None, list[Answer]]:
        """Each new piece of text of each answer; the generator's value is the list of answers."""
        read = [read_conversation(messages) for messages in conversations]
        run: Run | None = None
        try:
            with self._working():
                run = Run(self._ready_family(), self.spec.model, read, pruning, generation)
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
            self._family.model.to(self.device)
        return self._family

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


def shared_engine(spec: ModelSpec) -> Engine:
    """The process's one engine for a spec. It loads at its first question."""
    with _engines_lock:
        if spec not in _engines:
            _engines[spec] = Engine(spec)
        return _engines[spec]

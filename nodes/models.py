"""Models that nodes ask: the interface of all of them, and the model on this machine."""

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tops_workflow.host import Host

from tops_engine.answers.base import BaseAnswer, Piece
from tops_engine.captioning.asking import Captioned, Picture, Question, caption_in_batches
from tops_engine.contract import ChatEngine, Request
from tops_engine.conversation.messages import Message
from tops_engine.settings import ModelSpec, Pruning

from .comfyui_host import LayerWatch, TokenWatch
from .residency import bring_in, move_out

if TYPE_CHECKING:
    from tops_engine.engine import Engine


class NodeModel(ABC):
    """Socket TOPS_MODEL: a model that nodes ask.

    Attributes
    ----------
    engine : answers the questions. A model on this machine may have to be brought to its device first; :meth:`stream`
        does that.
    default_pruning : the pruning if none is connected; None is the server's own.
    """

    engine: ChatEngine[BaseAnswer]
    default_pruning: Pruning | None

    @abstractmethod
    def stream(self, request: Request, host: Host) -> Iterator[Piece | BaseAnswer]:
        """Answer a request piece by piece, with its progress on the node; an interruption stops within one token."""

    @abstractmethod
    def caption(self, pictures: Sequence[Picture], question: Question, at_once: int, host: Host) -> Iterator[Captioned]:
        """Ask the same question about pictures, up to ``at_once`` at a time; an interruption stops within one token."""

    @abstractmethod
    def takes_videos(self, max_tokens: int) -> bool:
        """Return whether the model takes videos, rather than their frames as pictures."""

    @abstractmethod
    def local(self, node: str) -> "TopsModel":
        """Return the model on this machine, for a node that looks into it.

        Raises
        ------
        InvalidInput
            If the model is behind a server.
        """

    @abstractmethod
    def free(self) -> list[str]:
        """Free the memory of the model; return the names of the models freed, none for a server."""


class TopsModel(NodeModel):
    """A model on this machine. Get it with :func:`model_handle`.

    When the last handle is gone (the host dropped the output of the loader, or its settings changed), the weights are
    freed.

    Attributes
    ----------
    spec : which checkpoint, where and how.
    engine : the engine of the process for it.
    patcher : ComfyUI's entry for the loaded weights (``residency.py``); it lives as long as this handle.
    """

    engine: "Engine"
    default_pruning = Pruning()
    patcher: Any = None

    def __init__(self, spec: ModelSpec) -> None:
        from tops_engine.engine import shared_engine  # imports transformers, which is slow

        self.spec = spec
        self.engine = shared_engine(spec)
        weakref.finalize(self, self.engine.unload).atexit = False

    def __repr__(self) -> str:
        return f"TOPS model {self.spec.model} on {self.engine.device}"

    def stream(self, request: Request, host: Host) -> Iterator[Piece | BaseAnswer]:
        total = request.generation.max_tokens
        if not self.engine.is_loaded:
            host.show_text(f"Loading {Path(self.spec.model).name} …")
        engine = self.ready(total)
        host.show_text("Reading the prompt …")
        with LayerWatch(engine.family.model, host) as layers:
            yield from engine.run_stream(request, TokenWatch(host, total, layers=layers))

    def caption(self, pictures: Sequence[Picture], question: Question, at_once: int, host: Host) -> Iterator[Captioned]:
        length, num_done = question.generation.max_tokens, 0

        def answer(conversations: Sequence[Sequence[Message]]) -> Sequence[BaseAnswer]:
            size = len(conversations)
            engine = self.ready(length, size)
            with LayerWatch(engine.family.model, host) as layers:
                watch = TokenWatch(host, len(pictures) * length, num_done * length, stride=size, layers=layers)
                return engine.batch(conversations, question.pruning, question.generation, watch)

        for one in caption_in_batches(answer, pictures, question.prompt, at_once):
            num_done += 1
            yield one

    def ready(self, max_tokens: int, batch_size: int = 1) -> "Engine":
        """Return the engine with its weights on the device. Call it right before every generation.

        Raises
        ------
        OutOfMemory
            If the device cannot hold the model and its working memory even with everything else moved out.
        """
        return bring_in(self, max_tokens, batch_size)

    def takes_videos(self, max_tokens: int) -> bool:
        return self.ready(max_tokens).family.takes_videos

    def local(self, node: str) -> "TopsModel":
        return self

    def free(self) -> list[str]:
        move_out(self)
        return [self.spec.model]


@contextmanager
def freed_if(unload: bool, model: NodeModel) -> Iterator[None]:
    """Free the model's memory when the block ends, also by an error or an interruption, if the user wants that."""
    try:
        yield
    finally:
        if unload:
            model.free()


_handles: weakref.WeakValueDictionary[ModelSpec, TopsModel] = weakref.WeakValueDictionary()
_handles_lock = threading.Lock()


def model_handle(spec: ModelSpec) -> TopsModel:
    """Return the one handle for a spec, however many loader nodes ask for it."""
    with _handles_lock:
        handle = _handles.get(spec)
        if handle is None:
            handle = _handles[spec] = TopsModel(spec)
        return handle


def living_handles() -> list[TopsModel]:
    """Return every model on this machine that the output of some node still refers to."""
    with _handles_lock:
        return list(_handles.values())

"""The contract of all engines: what they are asked, and what they can do.

:class:`tops_engine.engine.Engine` runs a model on this machine, :class:`tops_engine.remote.RemoteEngine` asks a server.
Code that works with both takes a :class:`ChatEngine`.
"""

import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from tops_engine.answers.base import BaseAnswer, Piece
from tops_engine.conversation.messages import Message
from tops_engine.conversation.tools import Tools
from tops_engine.settings import Generation, Pruning

AnswerT_co = TypeVar("AnswerT_co", bound=BaseAnswer, covariant=True)


@dataclass(frozen=True)
class Request:
    """One conversation to answer, and how.

    Attributes
    ----------
    messages : the conversation; the last message asks, or is the beginning of the answer, which the model continues.
    pruning : which visual tokens to keep; None is the default of the engine.
    generation : length, sampling, stop strings, schema of the answer.
    tools : the functions that the model may call.
    """

    messages: Sequence[Message]
    pruning: Pruning | None = None
    generation: Generation = field(default_factory=Generation)
    tools: Tools | None = None


class ChatEngine(Protocol[AnswerT_co]):
    """A model that answers questions about pictures. Safe to use from several threads."""

    def chat(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> AnswerT_co:
        """Answer one conversation.

        Parameters
        ----------
        messages : ``[{"role": "user", "content": [{"type": "image", "image": path}, {"type": "text", "text": ...}]}]``;
            ``user_message`` writes one. If the last message is an assistant's text, the answer continues it and does
            not repeat it. A server takes no videos.
        pruning : which visual tokens to keep; ``Pruning(keep=1.0)`` is the model itself. None is ``Pruning()``, or
            the pruning that the server was started with. For one request, a server of ``tops serve`` takes any budget
            up to its own, with its own method and options only.
        generation : length, sampling, stop strings, schema of the answer.
        cancel : set it from another thread to stop within one token; the answer so far is returned.
        tools : functions that the model may call. Calls come back in the answer; results go into the conversation as
            ``{"role": "tool", "content": ...}`` after the assistant's message with its ``tool_calls``. vLLM has to be
            started for functions (``--enable-auto-tool-choice`` and ``--tool-call-parser``).

        Raises
        ------
        InvalidInput
            If the question is not allowed; a bad picture (InvalidImage) and a prompt that is too long
            (ContextLengthError) are of this kind.
        ModelNotFound
            If the model does not exist.
        OutOfMemory
            If the device has too little memory.
        ServerError
            If the server cannot be reached, refuses the key or fails; ServerTimeout if it takes too long.
        TopsError
            The base class of all these; the engine stays usable.
        """
        return self.run([Request(messages, pruning, generation or Generation(), tools)], cancel)[0]

    def batch(
        self,
        conversations: Sequence[Sequence[Message]],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> Sequence[AnswerT_co]:
        """Answer several conversations together; they may differ in length and number of pictures.

        A server gets up to ``max_concurrency`` requests at a time. See :meth:`chat` for the parameters and errors.
        """
        generation = generation or Generation()
        return self.run([Request(messages, pruning, generation, tools) for messages in conversations], cancel)

    def stream(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> Iterator[Piece | AnswerT_co]:
        """Answer one conversation piece by piece: texts as they become certain, then the answer.

        The reasoning of a thinking model comes as :class:`ReasoningPiece`, before the first text. With tools, each call
        comes as :class:`ToolCall` as soon as it is complete; a server's calls come with the answer.

        Closing the iterator stops the writing. See :meth:`chat` for the parameters and errors.
        """
        return self.run_stream(Request(messages, pruning, generation or Generation(), tools), cancel)

    @abstractmethod
    def run(self, requests: Sequence[Request], cancel: threading.Event | None = None) -> Sequence[AnswerT_co]:
        """Answer requests, in their order; as :meth:`batch`."""
        ...

    @abstractmethod
    def run_stream(self, request: Request, cancel: threading.Event | None = None) -> Iterator[Piece | AnswerT_co]:
        """Answer one request piece by piece; as :meth:`stream`."""
        ...

    @abstractmethod
    def count_tokens(self, messages: Sequence[Message], tools: Tools | None = None) -> int:
        """Return the number of tokens of a prompt, with its pictures and chat template.

        An engine on this machine counts before pruning, a server (vLLM's ``/tokenize``) after its own pruning.
        ``messages`` may be a part of a conversation: it need not ask anything, results may lack their calls, and an
        empty list is 0 tokens.
        """
        ...

    @abstractmethod
    def count_visual_tokens(self, width: int, height: int) -> int:
        """Return the number of visual tokens of a picture of that many pixels, alone in a prompt.

        An engine on this machine counts before pruning, a server after its own pruning and with the tokens that
        enclose the picture.
        """
        ...

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text, without those that mark its beginning or end."""
        ...

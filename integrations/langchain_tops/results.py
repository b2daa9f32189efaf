"""The answers of engines as LangChain messages, with usage and measurements."""

import uuid
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, ToolCallChunk
from langchain_core.messages import InvalidToolCall as InvalidCall
from langchain_core.messages import ToolCall as Call
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult

from tops_engine.answers.base import BaseAnswer, Piece, ReasoningPiece, ToolCall
from tops_engine.errors import TopsError

CUT = "<tool_call>"


def chat_result(answer: BaseAnswer) -> ChatResult:
    """Return an answer as the result of a call, with one message.

    Raises:
        TopsError: If the answer was cancelled.
    """
    if answer.finish_reason == "cancelled":
        # A message would look complete and be cached.
        raise TopsError("The answer was not completed, because another input of its batch failed.")
    message = AIMessage(
        answer.text,
        additional_kwargs=_reasoning(answer.reasoning),
        tool_calls=[_call(call) for call in answer.tool_calls],
        invalid_tool_calls=_invalid_calls(answer),
        usage_metadata=usage_metadata(answer),
        response_metadata=response_metadata(answer),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


class Chunks:
    """Turns the pieces of one stream into chunks of a message."""

    def __init__(self) -> None:
        self._num_calls = 0

    def chunk(self, piece: Piece | BaseAnswer) -> AIMessageChunk:
        """Return a piece of the stream, or its answer, as a chunk."""
        if isinstance(piece, BaseAnswer):
            return self._last(piece)
        if isinstance(piece, ReasoningPiece):
            return AIMessageChunk(content="", additional_kwargs=_reasoning(piece.text))
        if isinstance(piece, ToolCall):
            return AIMessageChunk(content="", tool_call_chunks=self._call_chunks([_call(piece)], []))
        return AIMessageChunk(content=piece)

    def _last(self, answer: BaseAnswer) -> AIMessageChunk:
        """Return the last chunk. It alone holds usage and measurements: merging chunks adds them up."""
        new = [_call(call) for call in answer.tool_calls[self._num_calls :]]
        return AIMessageChunk(
            content="",
            tool_call_chunks=self._call_chunks(new, _invalid_calls(answer)),
            usage_metadata=usage_metadata(answer),
            response_metadata=response_metadata(answer),
            chunk_position="last",
        )

    def _call_chunks(self, calls: list[Call], invalid: list[InvalidCall]) -> list[ToolCallChunk]:
        """Return each call as one whole chunk: LangChain would complete half a call when it merges chunks."""
        whole = AIMessageChunk(content="", tool_calls=calls, invalid_tool_calls=invalid)
        chunks: list[ToolCallChunk] = [
            {**one, "index": self._num_calls + number} for number, one in enumerate(whole.tool_call_chunks)
        ]
        self._num_calls += len(calls)
        return chunks


def usage_metadata(answer: BaseAnswer) -> UsageMetadata | None:
    """Return the token counts; None if a server does not state them.

    ``input_tokens`` counts the tokens that entered the language model, after pruning before it. Of the visual tokens,
    ``image`` counts all before pruning, ``image_kept`` those that entered the language model, and
    ``image_layer_average`` is the mean over the layers. ``cache_read`` counts the input that an earlier prompt had in
    common. A server states only ``image_kept`` and ``cache_read``, and only if it was started for it (vLLM:
    ``--enable-prompt-tokens-details``).
    """
    usage = answer.usage
    if usage is None:
        return None
    details = {
        "cache_read": usage.reused_tokens,
        "image": usage.unpruned_visual_tokens,
        "image_kept": usage.input_visual_tokens,
        "image_layer_average": usage.layer_average,
    }
    known: Any = {name: round(count) for name, count in details.items() if count is not None}
    metadata = UsageMetadata(
        input_tokens=usage.input_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.input_tokens + usage.completion_tokens,
        input_token_details=known,
    )
    if usage.reasoning_tokens:
        metadata["output_token_details"] = {"reasoning": usage.reasoning_tokens}
    return metadata


def response_metadata(answer: BaseAnswer) -> dict[str, Any]:
    """Return what ran as plain data: model, options, tokens, seconds; for a model on this machine stages and FLOPs.

    ``boxes`` and ``points`` are there if the answer names places in its pictures.
    """
    made_calls = bool(answer.tool_calls) and answer.finish_reason == "stop"
    metadata: dict[str, Any] = {
        "model_name": answer.model,
        "model_provider": "tops",
        "finish_reason": "tool_calls" if made_calls else answer.finish_reason,
    }
    measured = answer.model_dump(mode="json", include={"pruning", "usage", "timings", "flops", "kv_cache_bytes"})
    metadata |= {name: value for name, value in measured.items() if value is not None}
    places = answer.model_dump(mode="json", include={"boxes", "points"})
    metadata |= {name: found for name, found in places.items() if found}
    if answer.finish_reason == "length":
        # LangChain's parsers of tool calls read this name to explain what is missing.
        metadata["stop_reason"] = "max_tokens"
    return metadata


def _reasoning(text: str) -> dict[str, Any]:
    """Return where LangChain looks for the reasoning: ``content_blocks`` of the message has it as a block."""
    return {"reasoning_content": text} if text else {}


def _call(call: ToolCall) -> Call:
    return Call(name=call.name, args=call.arguments, id=_new_id(), type="tool_call")


def _invalid_calls(answer: BaseAnswer) -> list[InvalidCall]:
    # What stands in front of the text keeps LangChain from completing half a JSON object to a call.
    return [
        InvalidCall(name=None, args=CUT + call.text, id=_new_id(), error=call.error, type="invalid_tool_call")
        for call in answer.invalid_tool_calls
    ]


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"

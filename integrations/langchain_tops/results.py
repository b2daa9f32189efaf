"""The engine's answers as LangChain messages, with what was used and measured."""

import uuid
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, ToolCallChunk
from langchain_core.messages import InvalidToolCall as InvalidCall
from langchain_core.messages import ToolCall as Call
from langchain_core.messages.ai import UsageMetadata

from tops_engine.answers.report import Answer
from tops_engine.conversation.tools import BEGIN
from tops_engine.remote import RemoteAnswer, RemoteUsage

AnyAnswer = Answer | RemoteAnswer


def as_message(answer: AnyAnswer) -> AIMessage:
    """An answer as one message."""
    return AIMessage(
        answer.text,
        tool_calls=[
            Call(name=call.name, args=call.arguments, id=_new_id(), type="tool_call") for call in answer.tool_calls
        ],
        invalid_tool_calls=[
            InvalidCall(name=None, args=BEGIN + call.text, id=_new_id(), error=call.error, type="invalid_tool_call")
            for call in answer.invalid_tool_calls
        ],
        usage_metadata=usage_metadata(answer),
        response_metadata=response_metadata(answer),
    )


def last_chunk(answer: AnyAnswer) -> AIMessageChunk:
    """What closes a stream: calls, usage and measurements, once, since merging chunks adds them up."""
    return AIMessageChunk(
        content="",
        tool_call_chunks=_call_chunks(as_message(answer)),
        usage_metadata=usage_metadata(answer),
        response_metadata=response_metadata(answer),
        chunk_position="last",
    )


def usage_metadata(answer: AnyAnswer) -> UsageMetadata | None:
    """Token counts; None if a server says nothing of them.

    ``input_tokens`` are those that entered the language model, pruned before it or not; of the pictures' tokens,
    ``image`` were there unpruned, ``image_kept`` entered, and ``image_layer_average`` is the mean over the layers.
    ``cache_read`` of the input were known from an earlier prompt. A server does not know what it pruned, and says the
    rest only if it was started for it (vLLM: ``--enable-prompt-tokens-details``).
    """
    usage = answer.usage
    if usage is None:
        return None
    details: Any = {"cache_read": usage.reused_tokens}
    if isinstance(usage, RemoteUsage):
        details["image_kept"] = usage.visual_tokens
    else:
        details["image"] = usage.visual_tokens
        details["image_kept"] = usage.input_tokens - (usage.prompt_tokens - usage.visual_tokens)
        details["image_layer_average"] = round(usage.layer_average)
    known: Any = {name: count for name, count in details.items() if count is not None}
    return UsageMetadata(
        input_tokens=usage.input_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.input_tokens + usage.completion_tokens,
        input_token_details=known,
    )


def response_metadata(answer: AnyAnswer) -> dict[str, Any]:
    """What ran, in plain data: model, options, tokens, seconds, and of models that run here each stage and FLOPs."""
    made_calls = bool(answer.tool_calls) and answer.finish_reason == "stop"
    metadata: dict[str, Any] = {
        "model_name": answer.model,
        "model_provider": "tops",
        "finish_reason": "tool_calls" if made_calls else answer.finish_reason,
    }
    measured = answer.model_dump(mode="json", include={"pruning", "usage", "timings", "flops", "kv_cache_bytes"})
    metadata |= {name: value for name, value in measured.items() if value is not None}
    if answer.finish_reason == "length":
        # By this name LangChain's parsers of tool calls explain what is missing.
        metadata["stop_reason"] = "max_tokens"
    return metadata


def _call_chunks(message: AIMessage) -> list[ToolCallChunk]:
    """Calls as chunks, each whole: merged chunks are read leniently, and half a call would become a whole one."""
    whole = AIMessageChunk(content="", tool_calls=message.tool_calls, invalid_tool_calls=message.invalid_tool_calls)
    return [{**chunk, "index": index} for index, chunk in enumerate(whole.tool_call_chunks)]


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"

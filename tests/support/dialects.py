"""Answers of servers other than vLLM in OpenAI's protocol.

Each answer names the page that documents its fields. The tool calls of llama.cpp, TGI and LM Studio follow these pages
as read on 2026-11-28, those of Ollama and SGLang follow excerpts of their issue threads. The other bodies (OpenAI's,
most streams, texts and errors) are written from general knowledge of the protocol. The values are our own: a model that
calls ``crop`` twice, or answers "5".
"""

from dataclasses import dataclass, field
from typing import Any

LEFT, RIGHT = '{"side": "left"}', '{"side": "right"}'
USAGE = {"prompt_tokens": 44, "completion_tokens": 16, "total_tokens": 60}


def chunk(delta: dict[str, Any], reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return a chunk of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **fields}


def whole(message: dict[str, Any], reason: str | None, **fields: Any) -> dict[str, Any]:
    """Return an answer that is not streamed."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **fields}


def call(arguments: Any, **fields: Any) -> dict[str, Any]:
    """Return a call of ``crop``."""
    return {"type": "function", "function": {"name": "crop", "arguments": arguments}, **fields}


def more(arguments: str, **fields: Any) -> dict[str, Any]:
    """Return further arguments of a call that has started."""
    return {"function": {"arguments": arguments}, **fields}


@dataclass(frozen=True)
class Dialect:
    """A server's form of two calls, of a text, and of an error.

    Attributes
    ----------
    source : page of its documentation or issue that shows this form.
    calls, streamed_calls : the calls of ``crop`` for left and right.
    text : the answer "5".
    error : the body of an error with the status 400.
    """

    source: str
    calls: dict[str, Any]
    streamed_calls: list[dict[str, Any]]
    text: dict[str, Any]
    error: dict[str, Any] = field(default_factory=lambda: {"error": {"message": "It went wrong", "type": "x"}})


OPENAI = Dialect(
    "https://platform.openai.com/docs/guides/function-calling#streaming",
    whole({"content": None, "refusal": None, "tool_calls": [call(LEFT, id="a"), call(RIGHT, id="b")]}, "tool_calls"),
    [
        chunk({"role": "assistant", "content": None, "tool_calls": [call("", index=0, id="a")], "refusal": None}),
        chunk({"tool_calls": [more('{"side": ', index=0)]}),
        chunk({"tool_calls": [more('"left"}', index=0)]}),
        chunk({"tool_calls": [call("", index=1, id="b")]}),
        chunk({"tool_calls": [more(RIGHT, index=1)]}),
        chunk({}, "tool_calls"),
        {**chunk({}), "choices": [], "usage": USAGE},
    ],
    whole({"content": "5", "refusal": None, "annotations": []}, "stop", usage=USAGE, service_tier="default"),
    {"error": {"message": "It went wrong", "type": "invalid_request_error", "param": None, "code": None}},
)

LLAMA_CPP = Dialect(
    "https://github.com/ggml-org/llama.cpp/blob/master/docs/function-calling.md",
    whole(
        {
            "content": None,
            "tool_calls": [{"name": "crop", "arguments": LEFT}, {"name": "crop", "arguments": RIGHT}],
        },
        "tool",
        usage=USAGE,
    ),
    [
        chunk({"role": "assistant", "content": None}),
        chunk({"tool_calls": [call("{", index=0, id="a")]}),
        chunk({"tool_calls": [more('"side": "left"}', index=0)]}),
        chunk({"tool_calls": [call(RIGHT, index=1, id="b")]}),
        chunk({}, "tool_calls", timings={"predicted_n": 16}),
    ],
    whole({"content": "5"}, "stop", usage=USAGE, timings={"predicted_n": 1}, system_fingerprint="b1"),
    {"error": {"code": 400, "message": "It went wrong", "type": "invalid_request_error"}},
)

OLLAMA = Dialect(
    "https://github.com/ollama/ollama/issues/15457",
    whole({"content": "", "tool_calls": [call(LEFT, index=0, id="a"), call(RIGHT, index=0, id="b")]}, "tool_calls"),
    [
        chunk({"role": "assistant", "content": "", "tool_calls": [call(LEFT, index=0, id="a")]}),
        chunk({"role": "assistant", "content": "", "tool_calls": [call(RIGHT, index=0, id="b")]}),
        chunk({"role": "assistant", "content": ""}, "tool_calls", system_fingerprint="fp_ollama"),
    ],
    whole({"content": "5"}, "stop", usage=USAGE, system_fingerprint="fp_ollama"),
    {"error": {"message": "It went wrong", "type": "api_error", "param": None, "code": None}},
)

OLLAMA_BEFORE_0_4_7 = Dialect(
    "https://github.com/ollama/ollama/issues/7881",
    OLLAMA.calls,
    [
        chunk({"role": "assistant", "content": "", "tool_calls": [call(LEFT, id="a"), call(RIGHT, id="b")]}),
        chunk({"role": "assistant", "content": ""}, "stop"),
    ],
    OLLAMA.text,
)

TGI = Dialect(
    "https://huggingface.co/docs/text-generation-inference/basic_tutorials/using_guidance",
    whole(
        {"tool_calls": [call({"side": "left"}, id=0), call({"side": "right"}, id=0)]},
        "eos_token",
        usage=USAGE,
    ),
    [
        chunk({"role": "assistant", "tool_calls": call("{", index=0, id="")}),
        chunk({"role": "assistant", "tool_calls": more('"side": "left"}', index=0, id="")}),
        chunk({"role": "assistant", "tool_calls": call(RIGHT, index=0, id="")}),
        chunk({"role": "assistant", "content": ""}, "eos_token"),
    ],
    whole({"content": "5"}, "eos_token", usage=USAGE),
    {"error": "It went wrong", "error_type": "validation"},
)

SGLANG = Dialect(
    "https://github.com/sgl-project/sglang/issues/6310",
    whole(
        {"content": None, "reasoning_content": "r", "tool_calls": [call(LEFT, id="a"), call(RIGHT, id="b")]},
        "tool_calls",
        metadata={"weight_version": "default"},
    ),
    [
        chunk({"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": None}, usage=None),
        chunk({"role": None, "content": None, "reasoning_content": "r", "tool_calls": None}),
        chunk({"role": None, "content": None, "tool_calls": [call("", index=0, id="a")]}),
        chunk({"role": None, "content": None, "tool_calls": [more(LEFT, index=0, id=None)]}),
        chunk({"role": None, "content": None, "tool_calls": [call("", index=0, id="b")]}),
        chunk({"role": None, "content": None, "tool_calls": [more(RIGHT, index=0, id=None)]}),
        chunk({"role": None, "content": None, "tool_calls": None}, "tool_calls"),
    ],
    whole({"content": "5", "reasoning_content": None, "tool_calls": None}, "stop", usage=USAGE),
    {"object": "error", "message": "It went wrong", "type": "BadRequestError", "param": None, "code": 400},
)

LM_STUDIO = Dialect(
    "https://lmstudio.ai/docs/developer/openai-compat/tools",
    whole({"tool_calls": [call(LEFT, id="1"), call(RIGHT, id="2")]}, "tool_calls", usage=USAGE),
    [
        chunk({"role": "assistant", "tool_calls": [call("", index=0, id="1")]}),
        chunk({"tool_calls": [more(LEFT, index=0)]}),
        chunk({"tool_calls": [call("", index=1, id="2")]}),
        chunk({"tool_calls": [more(RIGHT, index=1)]}),
        chunk({}, "tool_calls"),
    ],
    whole({"content": "5"}, "stop", usage=USAGE, stats={}),
    {"error": "It went wrong"},
)

DIALECTS: dict[str, Dialect] = {
    "OpenAI": OPENAI,
    "llama.cpp": LLAMA_CPP,
    "Ollama": OLLAMA,
    "Ollama before 0.4.7": OLLAMA_BEFORE_0_4_7,
    "TGI": TGI,
    "SGLang": SGLANG,
    "LM Studio": LM_STUDIO,
}

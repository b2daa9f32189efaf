"""Sound conversations in the styles of OpenAI, LangChain, Anthropic and Google, which the fuzz damages."""

import base64
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).parents[2] / "tops_engine" / "mini" / "sample.jpg"
BASE64 = base64.b64encode(SAMPLE.read_bytes()).decode()
DATA_URL = f"data:image/jpeg;base64,{BASE64}"

CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": {"where": "left"}}}
CALL_AS_TEXT = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"where": "left"}'}}
LANGCHAIN_CALL = {"id": "call_1", "type": "tool_call", "name": "look", "args": {"where": "left"}}
CITATION = {"type": "citation", "url": "https://example.org", "cited_text": "x"}


def text(value: str = "What number is written?") -> dict[str, Any]:
    return {"type": "text", "text": value}


#: Conversations in the engine's own form.
OF_ENGINE: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": [{"type": "image", "image": str(SAMPLE), "keep": 0.5}, text()]}],
    [{"role": "user", "content": [{"type": "image", "image": DATA_URL}, text()]}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [text()]},
    ],
    [
        {"role": "user", "content": [text("Look left."), text("Then right.")]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": [text("nothing")]},
    ],
    [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [CALL_AS_TEXT]},
        {"role": "tool", "tool_call_id": "call_1", "name": "look", "content": "nothing"},
        {"role": "user", "content": [{"type": "image", "image": BASE64}]},
    ],
    [{"role": "user", "content": [{"type": "video", "video": [DATA_URL], "num_frames": 2, "fps": 1.0}, text()]}],
]

#: The content of a user's message in the forms that chat models of other providers take.
BLOCKS: list[list[Any]] = [
    [{"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}}, text()],
    [{"type": "image_url", "image_url": DATA_URL}, text()],
    [{"type": "input_image", "image_url": DATA_URL}, {"type": "input_text", "text": "What?"}],
    [{"type": "image", "base64": BASE64, "mime_type": "image/jpeg"}, text()],
    [{"type": "image", "source_type": "base64", "data": BASE64, "mime_type": "image/jpeg"}, text()],
    [{"type": "image", "url": DATA_URL, "id": "x", "extras": {"detail": "low"}}, text()],
    [{"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": BASE64}}, text()],
    [{"type": "image", "source": {"type": "url", "url": DATA_URL}}, text()],
    [{"type": "media", "mime_type": "image/jpeg", "data": BASE64}, text()],
    [{"type": "media", "mime_type": "image/jpeg", "file_uri": DATA_URL}, text()],
    [{"type": "file", "file": {"filename": "a.jpg", "file_data": DATA_URL}}, text()],
    [{"type": "file", "base64": BASE64, "mime_type": "image/jpeg", "filename": "a.jpg"}, text()],
    [{"type": "text-plain", "text": "A note.", "mime_type": "text/plain"}, "What?"],
    [{"type": "text", "text": "What?", "annotations": [CITATION], "cache_control": {"type": "ephemeral"}}],
    [{"type": "video", "url": DATA_URL, "num_frames": 2}, text()],
]

#: The content of an assistant's message.
SAID: list[Any] = [
    "I look.",
    [text("I look."), {"type": "tool_use", "id": "call_1", "name": "look", "input": {"where": "left"}}],
    [{"type": "thinking", "thinking": "Left?", "signature": "x"}, text("I look.")],
    [{"type": "reasoning", "reasoning": "Left?"}, LANGCHAIN_CALL],
]

#: The content of a tool's result.
RESULTS: list[Any] = [
    "nothing",
    [text("nothing"), {"type": "image_url", "image_url": {"url": DATA_URL}}],
    [{"type": "json", "json": {"found": 0}}],
    '[{"type": "image", "base64": "AAAA"}]',
]


def of_langchain(number: int) -> list[dict[str, Any]]:
    """Return one of the conversations as the arguments of LangChain's messages, with their ``kind``."""
    asked = {"kind": "human", "content": BLOCKS[number % len(BLOCKS)], "additional_kwargs": {}}
    if number % 3:
        return [asked]
    said = {"kind": "ai", "content": SAID[number % len(SAID)], "tool_calls": [LANGCHAIN_CALL]}
    result = {"kind": "tool", "content": RESULTS[number // 3 % len(RESULTS)], "tool_call_id": "call_1"}
    return [{"kind": "system", "content": "Be brief."}, asked, said, result]

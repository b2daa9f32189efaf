"""The body of a request in OpenAI's protocol: messages, pictures, settings and functions."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from tops_engine.budget import Keep
from tops_engine.conversation.messages import Message, alternating, read_messages
from tops_engine.conversation.thinking import SWITCH
from tops_engine.conversation.tools import Tools, images_after_results, with_plain_texts
from tops_engine.errors import InvalidInput
from tops_engine.media.images import ImageSource, image_file
from tops_engine.settings import Generation

# The protocol demands an id for each call; conversations do not.
NO_ID = "call"

#: Returns the part of a message that holds a picture.
WritePicture = Callable[[ImageSource], dict[str, Any]]


def data_url(source: ImageSource) -> dict[str, Any]:
    """Return the part of a message that holds a picture as a data URL."""
    data, media_type = image_file(source)
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def chat_request(
    messages: Sequence[Message], generation: Generation, tools: Tools | None, write_picture: WritePicture = data_url
) -> dict[str, Any]:
    """Return the arguments of ``client.chat.completions.create``, without the model.

    Raises
    ------
    InvalidInput
        As :func:`tops_engine.conversation.messages.read_conversation`, or if there is a video.
    """
    written = chat_messages(messages, write_picture=write_picture)
    body = {"messages": written} | _writing(generation) | _functions(tools)
    extra = body.get("extra_body", {}) | continuation(written)
    return body | ({"extra_body": extra} if extra else {})


def chat_messages(
    messages: Sequence[Message],
    partial: bool = False,
    taking_turns: bool = False,
    write_picture: WritePicture = data_url,
) -> list[dict[str, Any]]:
    """Return messages in the form of the protocol.

    Pictures in the results of functions follow in a user turn: OpenAI's protocol allows none in results.

    Parameters
    ----------
    partial : as for :func:`tops_engine.conversation.messages.read_conversation`.
    taking_turns : whether to bring the messages in the form of
        :func:`tops_engine.conversation.messages.alternating`.
    write_picture : returns the part for each picture.
    """
    written: list[dict[str, Any]] = []

    def take_image(source: ImageSource, keep: Keep | None) -> None:
        written.append(write_picture(source))

    read = read_messages(messages, take_image, _refuse_video, partial)
    # Insert the pictures in the order of the prompt, before some of them move.
    pictures = iter(written)
    for message in read:
        message["content"] = [next(pictures) if part["type"] == "image" else part for part in message["content"]]
    if taking_turns:
        read = alternating(read, partial)
    return [_with_calls(message) for message in with_plain_texts(images_after_results(read))]


def own_keeps(messages: Sequence[Message]) -> list[Keep | None]:
    """Return the own budget of each picture, in the order of the prompt; None where it has none."""
    keeps: list[Keep | None] = []
    read_messages(messages, lambda _, keep: keeps.append(keep), _refuse_video)
    return keeps


def continuation(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields that make a server continue the last message, if it is an assistant's text.

    vLLM and SGLang have them. Without them, a template would end that message and begin a new one.
    """
    last = messages[-1]
    if last["role"] != "assistant" or "tool_calls" in last or not last["content"]:
        return {}
    return {"continue_final_message": True, "add_generation_prompt": False}


def _refuse_video(source: object, num_frames: int | None, fps: float | None, keep: object) -> NoReturn:
    raise InvalidInput(
        "A server would choose other frames of a video than the engine; send some of its frames as pictures, "
        "or ask a model on this machine."
    )


def _with_calls(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose calls have their arguments as text, and an id."""
    if message["role"] == "tool":
        return {**message, "tool_call_id": message.get("tool_call_id") or NO_ID}
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        called = {"name": function["name"], "arguments": arguments}
        calls.append({"id": call["id"] or NO_ID, "type": "function", "function": called})
    return {**message, "tool_calls": calls}


def _writing(generation: Generation) -> dict[str, Any]:
    """Return the fields for the settings. A server would replace settings that are missing by its own defaults.

    Only the checkpoint's own repetition penalty is left to the server.
    """
    body: dict[str, Any] = {"max_tokens": generation.max_tokens, "temperature": generation.temperature}
    extra: dict[str, Any] = {}
    if generation.temperature > 0:
        body["top_p"] = generation.top_p
        extra["top_k"] = generation.top_k
    if generation.repetition_penalty is not None:
        extra["repetition_penalty"] = generation.repetition_penalty
    if generation.seed is not None:
        # Servers take signed integers of 64 bits; the upper half of the seeds becomes the negative ones.
        body["seed"] = generation.seed - 2**64 if generation.seed >= 2**63 else generation.seed
    if generation.stop:
        body["stop"] = list(generation.stop)
    if generation.json_schema is not None:
        body["response_format"] = _response_format(json.loads(generation.json_schema))
    extra |= _thinking(generation.thinking)
    return body | ({"extra_body": extra} if extra else {})


def _thinking(thinking: str | int | None) -> dict[str, Any]:
    """Return the fields of vLLM, SGLang and llama.cpp for the switch of the chat template, and vLLM's for a budget."""
    if thinking is None:
        return {}
    switch = {"chat_template_kwargs": {SWITCH: thinking != "off"}}
    return switch | ({"thinking_token_budget": thinking} if isinstance(thinking, int) else {})


def _response_format(schema: dict[str, Any]) -> dict[str, Any]:
    if schema == {"type": "object"}:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def functions_of(tools: Tools) -> list[dict[str, Any]]:
    """Return functions in the form of the protocol. They are strict: otherwise vLLM accepts any JSON as arguments."""
    return [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in tools.functions]


def _functions(tools: Tools | None) -> dict[str, Any]:
    if tools is None or not tools.functions:
        return {}
    named = {"type": "function", "function": {"name": tools.choice}}
    body: dict[str, Any] = {
        "tools": functions_of(tools),
        "tool_choice": named if tools.choice in tools.names else tools.choice,
    }
    return body if tools.parallel else body | {"parallel_tool_calls": False}

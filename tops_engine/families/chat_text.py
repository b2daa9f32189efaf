"""A conversation as the text of a chat template."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tops_engine.conversation.messages import ROLES, Conversation, alternating, is_continued
from tops_engine.conversation.thinking import SWITCH, has_switch
from tops_engine.conversation.tool_formats import format_of
from tops_engine.conversation.tools import (
    RESPONSE_BEGIN,
    RESPONSE_END,
    for_template,
    images_after_results,
    knows_tools,
    without_tools,
)
from tops_engine.errors import InvalidInput, UnsupportedModel, reason_of

#: Marks of a turn that are text to some tokenizers, such as that of Mistral 7B.
TURN_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def chat_template(processor: Any, default: str | None) -> str:
    """Return the chat template of a checkpoint, or the default if it has none.

    Raises
    ------
    UnsupportedModel
        If there is neither.
    """
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template or default
    if template is None:
        raise UnsupportedModel("The checkpoint has no chat template; use an instruction-tuned one.")
    return str(template)


def turn_tokens(tokenizer: Any, template: str, ends: Iterable[int]) -> set[str]:
    """Return the tokens that begin or end a turn or a prompt, as text.

    They are the special tokens that the chat template writes, those of the roles, the tokenizer's own for beginning,
    end, padding and unknown characters, and those that end an answer. Special tokens that describe places in a picture,
    such as Qwen2-VL's ``<|box_start|>``, are none of these: users write them.

    Parameters
    ----------
    ends : ids of the tokens that end an answer.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    roles = {f"<|{role}|>" for role in ROLES}
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    named = {getattr(tokenizer, name) for name in names} | set(tokenizer.convert_ids_to_tokens(sorted(ends)))
    marks = {mark for mark in TURN_MARKS if mark in template}
    found = {token for token in special if token in template or token in roles} | named | marks
    return {token for token in found if token and token.strip()[1:]}


def chat_text(
    processor: Any, conversation: Conversation, default_template: str | None, reserved: Iterable[str] = ()
) -> str:
    """Write the conversation in the checkpoint's chat template, or in ``default_template`` if it has none.

    If the template refuses several messages of one role in a row, they are written as one message. A last message that
    is to be continued ends the text, as ``continue_final_message`` of transformers' chat templates defines it.

    Parameters
    ----------
    reserved : tokens that stand for pictures and videos, and tokens that begin or end a turn. Where a text, a tool's
        result or a function holds one, a space goes after its first character, so that it stays text: ``< image>``.
        A result may not end itself, either: ``< /tool_response>``.

    Raises
    ------
    InvalidInput
        If the template does not take the conversation.
    UnsupportedModel
        If there is no template, or if the conversation says whether to think and the template has no switch for it.
    """
    template = chat_template(processor, default_template)
    if conversation.thinking is not None and not has_switch(template):
        raise UnsupportedModel(
            "The model's chat template has no switch for thinking; leave thinking unset, or use another checkpoint."
        )
    tokens = sorted(reserved, key=len, reverse=True)
    tool_format = format_of(template, processor.tokenizer.get_added_vocab())
    of_results = list(dict.fromkeys([*tokens, RESPONSE_BEGIN, RESPONSE_END, *tool_format.result_marks]))
    messages = [
        _without_tokens(message, of_results if message["role"] == "tool" else tokens)
        for message in conversation.messages
    ]
    read = replace(conversation, messages=messages, functions=_without_tokens(conversation.functions, tokens))
    try:
        return _written(processor, template, read)
    except InvalidInput:
        taking_turns = alternating(messages, conversation.partial)
        if len(taking_turns) == len(messages):
            raise
        return _written(processor, template, replace(read, messages=taking_turns))


def _written(processor: Any, template: str, conversation: Conversation) -> str:
    """Write messages and functions in a template, in the form that the template knows."""
    messages, functions = conversation.messages, conversation.functions
    switch: dict[str, Any] = {} if conversation.thinking is None else {SWITCH: conversation.thinking}
    continues = is_continued(messages[-1])

    def fill(turns: Sequence[dict[str, Any]], **options: Any) -> str:
        return _filled(processor, template, continues, turns, **switch | options)

    if not functions and not any("tool_calls" in message or message["role"] == "tool" for message in messages):
        return fill(messages)
    tool_format = format_of(template, processor.tokenizer.get_added_vocab())
    if not knows_tools(template, tool_format):
        return fill(without_tools(messages, functions, tool_format))

    def fill_natively(turns: Sequence[dict[str, Any]]) -> str:
        return fill(for_template(turns, template, tool_format), tools=functions or None)

    if not any(
        part["type"] != "text" for message in messages if message["role"] == "tool" for part in message["content"]
    ):
        return fill_natively(messages)
    try:
        text = fill_natively(messages)
    except InvalidInput:
        return fill_natively(images_after_results(messages))
    # Some templates drop the pictures of results without a word.
    is_whole = text.count(processor.image_token) >= len(conversation.images)
    return text if is_whole else fill_natively(images_after_results(messages))


def _filled(processor: Any, template: str, continues: bool, messages: Sequence[dict[str, Any]], **options: Any) -> str:
    try:
        text = processor.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            tokenize=False,
            **options,
        )
    except Exception as error:  # jinja2 raises its own TemplateError, for example for roles in a refused order
        raise InvalidInput(f"The model's chat template does not take this conversation: {reason_of(error)}.") from error
    return str(text)


def _without_tokens(value: Any, tokens: Sequence[str]) -> Any:
    """Return JSON-like data in which no text holds one of the tokens."""
    if isinstance(value, str):
        for token in tokens:
            value = value.replace(token, f"{token[0]} {token[1:]}")
        return value
    if isinstance(value, Mapping):
        return {_without_tokens(key, tokens): _without_tokens(part, tokens) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tokens(part, tokens) for part in value]
    return value

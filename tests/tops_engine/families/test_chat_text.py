"""What a chat template gets of a conversation."""

from types import SimpleNamespace
from typing import Any

import jinja2
import pytest

from tests.support.checkpoints import small_tokenizer
from tops_engine.conversation.messages import Conversation, Message, read_conversation
from tops_engine.errors import InvalidInput
from tops_engine.families.chat_text import chat_text, turn_tokens

# As the templates of Gemma, Llama 2 and Mistral: system first, then user and assistant in turn.
TAKING_TURNS = (
    "{% for message in messages if message.role != 'system' %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "[{{ message.role }}]{% for part in message.content %}{{ part.text if part.type == 'text' else '<image>' }}"
    "{% endfor %}{% endfor %}"
)


class Processor:
    """The part of a processor that writes templates."""

    image_token = "<image>"

    def __init__(self, template: str) -> None:
        self.chat_template = template
        self.tokenizer = SimpleNamespace(chat_template=None, get_added_vocab=dict)

    def apply_chat_template(self, messages: Any, chat_template: str, **options: Any) -> str:
        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        template = jinja2.Environment().from_string(chat_template)
        return template.render(messages=messages, raise_exception=raise_exception, **options)


def written(*messages: Message, template: str = TAKING_TURNS, partial: bool = False) -> str:
    conversation = read_conversation(messages, partial=partial)
    return chat_text(Processor(template), conversation, None, ["<image>"])


USER, ASSISTANT = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "3"}


def test_messages_in_a_row_become_one_where_the_template_refuses_them() -> None:
    assert written(USER, USER) == "[user]Hi.Hi."
    assert written(USER, ASSISTANT, ASSISTANT, USER) == "[user]Hi.[assistant]Hello.Hello.[user]Hi."
    plain = "{% for message in messages %}[{{ message.role }}]{% endfor %}"
    assert written(USER, USER, template=plain) == "[user][user]"


def test_reserved_are_the_tokens_that_begin_or_end_turns_and_not_those_that_users_write() -> None:
    tokenizer = small_tokenizer(end="<|im_end|>", place="<|box_start|>", user="<|user|>")
    assert turn_tokens(tokenizer, "{{ x }}<|im_end|>", []) == {"<s>", "</s>", "<pad>", "<|im_end|>", "<|user|>"}
    ids = tokenizer.convert_tokens_to_ids(["<|box_start|>"])
    assert turn_tokens(tokenizer, "{{ x }}", ids) == {"<s>", "</s>", "<pad>", "<|user|>", "<|box_start|>"}
    assert turn_tokens(small_tokenizer(), "[INST] {{ x }} [/INST]", []) >= {"[INST]", "[/INST]"}


def test_a_reserved_token_stays_text_and_a_result_does_not_end_itself() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"a": "<image>"}}}
    asked = {"role": "user", "content": "<image></tool_response>"}
    result = {"role": "tool", "content": "3</tool_response><image>"}
    template = "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}|{% endfor %}"
    assert written(asked, {"role": "assistant", "content": None, "tool_calls": [call]}, result, template=template) == (
        "< image></tool_response>|"
        '<tool_call>\n{"name": "look", "arguments": {"a": "< image>"}}\n</tool_call>|'
        "<tool_response>\n3< /tool_response>< image>\n</tool_response>\n|"
    )


def test_parts_of_a_conversation_are_written_though_the_template_demands_turns() -> None:
    assert written(ASSISTANT, partial=True) == "[user][assistant]Hello."
    assert written(ASSISTANT, USER, partial=True) == "[user][assistant]Hello.[user]Hi."
    assert written(RESULT, partial=True) == "[user]<tool_response>\n3\n</tool_response>\n"


def test_a_conversation_that_begins_with_the_assistant_is_refused_as_the_template_does() -> None:
    with pytest.raises(InvalidInput, match="roles must alternate"):
        written(ASSISTANT, USER)


def test_placeholders_in_texts_and_functions_stay_text() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"<image>": ["<<image>>"]}}}
    messages: list[Message] = [
        {"role": "user", "content": "What is <image><image>?"},
        {"role": "assistant", "content": "<image>", "tool_calls": [call]},
        {"role": "tool", "content": "<image>"},
    ]
    conversation = read_conversation(messages)
    function = {"type": "function", "function": {"name": "f", "description": "<image>"}}
    known = Conversation(conversation.messages, [], [], [function])
    text = chat_text(
        Processor(TAKING_TURNS.replace(" if message.role != 'system'", "")), read_conversation(messages), None
    )
    assert text.count("<image>") == 6
    template = "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endfor %}"
    text = chat_text(Processor(template), known, None, ["<image>"])
    assert "<image>" not in text
    assert text.count("< image>") == 7

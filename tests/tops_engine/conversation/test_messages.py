"""Test conversations: the forms that callers can write, and how they are read."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Picture
from tops_engine.conversation.messages import Message, alternating, read_conversation, user_message, video_message
from tops_engine.conversation.tools import Tools
from tops_engine.errors import InvalidImage, InvalidInput

TEXT = {"type": "text", "text": "What is this?"}


def refusal(messages: Any) -> str:
    with pytest.raises(InvalidInput) as error:
        read_conversation(messages)
    assert "\n" not in str(error.value)
    return str(error.value)


def asking(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_plain_text_becomes_one_text_part() -> None:
    conversation = read_conversation([{"role": "user", "content": "What is this?"}])

    assert conversation.messages == [{"role": "user", "content": [TEXT]}]
    assert conversation.images == []


def test_a_question_about_pictures_has_them_first_in_order(picture: Picture, tmp_path: Path) -> None:
    first, second = picture(3, 4, seed=1), picture(5, 6, seed=2)
    second.save(tmp_path / "second.png")

    conversation = read_conversation([user_message("What is this?", first, tmp_path / "second.png")])

    assert conversation.messages == [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, TEXT]}]
    assert [image.tobytes() for image in conversation.images] == [first.tobytes(), second.tobytes()]


def test_parts_and_turns_keep_their_order_and_pictures_are_counted_through(picture: Picture) -> None:
    images = [picture(seed=seed) for seed in range(3)]
    shown = [{"type": "image", "image": image} for image in images]

    conversation = read_conversation(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [shown[0], TEXT, shown[1]]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": (TEXT, shown[2])},
        ]
    )

    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant", "user"]
    assert [[part["type"] for part in message["content"]] for message in conversation.messages] == [
        ["text"],
        ["image", "text", "image"],
        ["text"],
        ["text", "image"],
    ]
    assert [image.tobytes() for image in conversation.images] == [image.tobytes() for image in images]


def test_the_callers_messages_are_left_as_they_were(picture: Picture) -> None:
    image = picture()
    messages = [user_message("What is this?", image)]
    read_conversation(messages)

    assert messages == [user_message("What is this?", image)]


@pytest.mark.parametrize("messages", [[], (), "What is this?", {"role": "user", "content": "What?"}, None, 3, b"Hi"])
def test_what_is_no_list_of_messages_is_refused_with_an_example(messages: Any) -> None:
    assert "[{" in refusal(messages)


@pytest.mark.parametrize("message", ["What is this?", None, 3, ["user", "What is this?"]])
def test_a_message_that_is_no_mapping_is_refused(message: Any) -> None:
    assert "message" in refusal([message])


@pytest.mark.parametrize("role", ["function", "", None, "User"])
def test_an_unknown_role_is_refused_with_the_known_ones(role: Any) -> None:
    assert refusal([{"role": role, "content": "Hi"}]) == (
        f"A message has the role {role!r}; use one of system, user, assistant, tool."
    )


@pytest.mark.parametrize("content", [None, 3, {"type": "text", "text": "Hi"}, Image.new("RGB", (2, 2))])
def test_content_that_is_neither_text_nor_parts_is_refused(content: Any) -> None:
    assert refusal([{"role": "user", "content": content}]) == (
        "A message's content is a text or a list of text, image and video parts."
    )


@pytest.mark.parametrize(
    "part",
    [
        "What is this?",
        None,
        {},
        {"type": "video"},
        {"type": "video", "video": None},
        {"type": "text"},
        {"type": "text", "text": 3},
        {"type": "image"},
        {"type": "image", "image": None},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
    ],
)
def test_an_unknown_or_empty_part_is_refused_with_the_known_ones(part: Any) -> None:
    assert refusal(asking(TEXT, part)).startswith('A content part is {"type": "text", "text": ...}, {"type"')


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_an_empty_prompt_is_refused(text: str) -> None:
    assert "The prompt is empty" in refusal([{"role": "user", "content": text}])
    assert "The prompt is empty" in refusal([user_message(text)])
    assert "The prompt is empty" in refusal([user_message(None)])
    assert "The prompt is empty" in refusal([user_message("What is this?"), user_message(text)])


@pytest.mark.parametrize("text", ["", "  \n\t", None])
def test_a_picture_is_a_question(text: str | None, picture: Picture) -> None:
    shown = {"type": "image", "image": picture()}
    for message in (
        user_message(text, picture()),
        {"role": "user", "content": [shown, {"type": "text", "text": text}]},
    ):
        conversation = read_conversation([message])
        assert len(conversation.images) == 1
        assert conversation.question == "Describe this picture."
    assert read_conversation(asking(shown)).messages == [{"role": "user", "content": [{"type": "image"}]}]


def test_a_picture_may_follow_its_question_as_a_message_of_its_own(picture: Picture) -> None:
    conversation = read_conversation([user_message(" What is this? "), user_message("", picture())])

    assert conversation.question == "What is this?"
    assert len(conversation.images) == 1


def test_a_text_of_none_is_no_text(picture: Picture) -> None:
    nothing = {"type": "text", "text": None}
    conversation = read_conversation(
        [
            {"role": "system", "content": [nothing]},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None},
            {"role": "user", "content": [nothing, TEXT, nothing]},
        ]
    )
    assert [message["content"] for message in conversation.messages] == [
        [],
        [{"type": "text", "text": "Hi"}],
        [],
        [TEXT],
    ]
    assert "The prompt is empty" in refusal(asking(nothing))


def test_lone_surrogates_are_replaced_and_pairs_joined_wherever_text_is_read() -> None:
    cut, pair = "cut \ud83d?", "\ud83d\ude00"
    call = {"id": "a", "type": "function", "function": {"name": f"f{cut}", "arguments": {pair: [cut]}}}
    function = {"type": "function", "function": {"name": f"f{cut}", "description": pair}}
    conversation = read_conversation(
        [
            {"role": "system", "content": pair},
            {"role": "user", "content": [{"type": "text", "text": cut}]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": cut},
        ],
        Tools([function], choice=f"f{cut}"),
    )
    texts = [part["text"] for message in conversation.messages for part in message["content"]]
    assert texts == ["\U0001f600", "cut \ufffd?", "", "cut \ufffd?"]
    (made,) = conversation.messages[2]["tool_calls"]
    assert made["function"] == {"name": "fcut \ufffd?", "arguments": {"\U0001f600": ["cut \ufffd?"]}}
    assert conversation.functions[0]["function"] == {"name": "fcut \ufffd?", "description": "\U0001f600"}


def test_a_part_of_a_conversation_may_be_anything_a_conversation_may_hold() -> None:
    result = {"role": "tool", "tool_call_id": "1", "content": "r"}
    for part in ([], [{"role": "system", "content": "Hi"}], [{"role": "assistant", "content": "Hi"}], [result]):
        conversation = read_conversation(part, partial=True)
        assert [message["role"] for message in conversation.messages] == [message["role"] for message in part]
        assert conversation.question
    with pytest.raises(InvalidInput, match="A conversation is a list of messages"):
        read_conversation("Hello", partial=True)  # type: ignore[arg-type]


TURNS = [
    (["user", "user"], False, ["user"]),
    (["system", "user", "assistant", "assistant", "user"], False, ["system", "user", "assistant", "user"]),
    (["assistant"], False, ["assistant"]),
    (["assistant"], True, ["user", "assistant"]),
    (["system"], True, ["system", "user"]),
    (["system", "assistant", "user"], True, ["system", "user", "assistant", "user"]),
    (["tool", "tool"], True, ["tool", "tool", "user"]),
]


@pytest.mark.parametrize(("roles", "partial", "expected"), TURNS)
def test_messages_take_turns(roles: list[str], partial: bool, expected: list[str]) -> None:
    messages = [{"role": role, "content": [{"type": "text", "text": str(i)}]} for i, role in enumerate(roles)]
    turns = alternating(messages, partial)
    assert [message["role"] for message in turns] == expected
    texts = [part["text"] for message in turns for part in message["content"]]
    assert texts == [str(i) for i in range(len(roles))]


def test_calls_that_are_no_list_are_refused() -> None:
    message = {"role": "assistant", "content": "Hi", "tool_calls": 3}
    assert "tool_calls of a message are a list, not 3." in refusal([message, {"role": "user", "content": "Who?"}])


def test_arguments_that_are_nested_too_deeply_are_refused() -> None:
    arguments: dict[str, Any] = {}
    for _ in range(300):
        arguments = {"a": arguments}
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert refusal([*messages, {"role": "tool", "content": "3"}]) == "A value is nested more than 250 levels deep."


def test_long_values_are_cut() -> None:
    assert len(refusal([{"role": "x" * 88_032, "content": "Hi"}])) < 200


def test_an_empty_list_of_parts_is_an_empty_prompt() -> None:
    assert "The prompt is empty" in refusal(asking())


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        ({"role": "system", "content": "Hello"}, "The last message is from the system; the user has to ask something."),
        (
            {"role": "assistant", "content": "Hello", "tool_calls": [{"function": {"name": "crop"}}]},
            "The last message calls functions; add a message of the role tool with each result.",
        ),
        (
            {"role": "assistant", "content": " "},
            "The last message, from the assistant, has no text to continue; leave it out.",
        ),
    ],
)
def test_a_last_message_that_neither_asks_nor_can_be_continued_is_refused(last: Message, sentence: str) -> None:
    assert refusal([{"role": "user", "content": "Hi"}, last]) == sentence


def test_a_text_of_the_assistant_at_the_end_is_continued() -> None:
    question, begun = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The"}
    assert read_conversation([question, begun]).continued_text == "The"
    assert read_conversation([question, begun, question]).continued_text == ""
    assert "The prompt is empty" in refusal([begun])


def test_a_picture_that_cannot_be_opened_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidImage, match=r"There is no picture at .*gone\.png"):
        read_conversation([user_message("What is this?", tmp_path / "gone.png")])


def test_pictures_and_videos_may_have_budgets_of_their_own(picture: Picture) -> None:
    frames = [picture(seed=seed) for seed in range(2)]
    conversation = read_conversation(
        [
            user_message("What?", picture(), picture(), keep=[0.5, None]),
            video_message("And?", frames, keep=64),
            asking({"type": "image", "image": picture(), "keep": "0.25"}, {"type": "video", "video": frames})[0],
        ]
    )
    assert conversation.image_keeps == [0.5, None, 0.25]
    assert conversation.video_keeps == [64, None]
    assert [part["keep"] for part in user_message("What?", picture(), picture(), keep=0.5)["content"][:2]] == [0.5, 0.5]


@pytest.mark.parametrize("keep", [0, 1, -2, 1.5, float("nan"), True, "half", [0.5]])
def test_a_budget_that_is_none_is_refused(picture: Picture, keep: Any) -> None:
    told = refusal(asking({"type": "image", "image": picture(), "keep": keep}))
    assert told.startswith(f"keep={keep!r} of a picture or video is not allowed: ")


def test_one_budget_for_each_picture(picture: Picture) -> None:
    with pytest.raises(InvalidInput, match="keep has 1 budgets for 2 pictures; give one for each"):
        user_message("What?", picture(), picture(), keep=[0.5])

"""Messages in every form LangChain has, and what cannot be read."""

import base64
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import trim_messages
from langchain_tops import ChatTOPSLlava, image_block
from langchain_tops.content import engine_messages
from PIL import Image

from tests.conftest import Picture
from tests.integrations.langchain_tops.conftest import asking
from tests.support.checkpoints_qwen import save_qwen2_5_vl
from tests.support.clips import clip
from tops_engine.conversation.messages import read_conversation
from tops_engine.errors import InvalidImage, InvalidInput
from tops_engine.media.images import open_image

TEXT = {"type": "text", "text": "What is this?"}
CALL = {"name": "look", "args": {"zoom": 2}, "id": "c1"}


def no_fetch(url: str) -> bytes:
    raise InvalidImage(f"{url} is not fetched.")


def read(*messages: BaseMessage) -> list[dict[str, Any]]:
    return engine_messages(messages, no_fetch)


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    stream = io.BytesIO()
    image.save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


@pytest.fixture
def image(picture: Picture) -> Image.Image:
    return picture(20, 10, seed=3)


def forms(image: Image.Image, path: Path) -> list[Any]:
    """One picture in every form."""
    data = encoded(image)
    url = f"data:image/png;base64,{data}"
    image.save(path)
    return [
        image_block(image),
        image_block(path),
        image_block(path.read_bytes()),
        {"type": "image", "base64": data, "mime_type": "image/png"},
        {"type": "image", "base64": data, "mime_type": "image/jpeg"},
        {"type": "image", "url": url},
        {"type": "image", "url": str(path)},
        {"type": "image", "url": path.as_uri()},
        {"type": "image", "source_type": "base64", "data": data, "mime_type": "image/png"},
        {"type": "image", "source_type": "url", "url": url},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": url}, "min_pixels": 9},
        {"type": "image_url", "image_url": url},
        {"type": "image_url", "image_url": {"url": str(path)}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        {"type": "input_image", "image_url": url},
        {"type": "image", "image": str(path)},
        {"type": "image", "image": image},
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "image_url", "image_url": data},
        {"type": "image", "url": data},
        {"type": "image", "image": np.asarray(image)},
        {"type": "image", "image": io.BytesIO(path.read_bytes())},
        {"type": "file", "base64": data, "mime_type": "image/png"},
        {"type": "file", "url": url},
        {"type": "file", "file": {"filename": "a.png", "file_data": url}},
        {"type": "media", "mime_type": "image/png", "data": data},
        {"type": "media", "mime_type": "image/png", "data": path.read_bytes()},
    ]


@pytest.mark.parametrize("number", range(29))
def test_a_picture_arrives_in_any_form_and_place(image: Image.Image, tmp_path: Path, number: int) -> None:
    block = forms(image, tmp_path / "a picture.png")[number]
    result = (
        ToolMessage([block], tool_call_id="c1") if number not in (16, 17, 18, 22, 23, 28) else HumanMessage([block])
    )
    call = AIMessage("", tool_calls=[CALL])
    for messages in ([HumanMessage([TEXT, block])], [SystemMessage([block, TEXT])], [HumanMessage("?"), call, result]):
        parts = [part for message in read(*messages) for part in message["content"] if part["type"] == "image"]
        assert [open_image(part["image"]).tobytes() for part in parts] == [image.tobytes()]


def test_text_and_pictures_keep_their_order(picture: Picture) -> None:
    images = [picture(seed=seed) for seed in range(20)]
    content: list[Any] = [
        item for image in images for item in (image_block(image), {"type": "text", "text": str(image.size)})
    ]
    (message,) = read(HumanMessage(["Look:", *content]))
    assert message["content"][0] == {"type": "text", "text": "Look:"}
    assert [part["type"] for part in message["content"][1:]] == ["image", "text"] * 20
    sent = [open_image(part["image"]).tobytes() for part in message["content"] if part["type"] == "image"]
    assert sent == [image.tobytes() for image in images]


def test_roles_calls_and_results() -> None:
    messages = read(
        SystemMessage("Be brief."),
        HumanMessage("Hi", name="Ann"),
        AIMessage(
            [
                TEXT,
                {"type": "tool_use", "id": "c1", "name": "look", "input": {}},
                {"type": "thinking", "thinking": "h"},
            ],
            tool_calls=[CALL],
        ),
        ToolMessage("no", tool_call_id="c1", status="error"),
        ChatMessage(content="So?", role="user"),
    )
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "user"]
    assert messages[2]["content"] == [TEXT]
    assert messages[2]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"zoom": 2}}
    assert messages[3]["tool_call_id"] == "c1"
    read_conversation(messages)


def test_pictures_that_langchain_wrote_as_text_are_found_again(image: Image.Image) -> None:
    hidden = json.dumps([{"type": "text", "text": "Here:"}, {"type": "image", "base64": encoded(image)}])
    (message,) = read(ToolMessage(hidden, tool_call_id="c1"))
    assert [part["type"] for part in message["content"]] == ["text", "image"]
    (plain,) = read(ToolMessage('[{"type": "cat"}]', tool_call_id="c1"))
    assert plain["content"] == [{"type": "text", "text": '[{"type": "cat"}]'}]


def test_videos_reach_the_engine_with_their_limits(tmp_path: Path) -> None:
    data = base64.b64encode(b"video").decode()
    (message,) = read(
        HumanMessage(
            [
                {"type": "video", "base64": data, "mime_type": "video/mp4"},
                {"type": "video", "url": str(tmp_path / "a.mp4"), "extras": {"num_frames": 8, "fps": 2.0}},
            ]
        )
    )
    assert message["content"] == [
        {"type": "video", "video": b"video"},
        {"type": "video", "video": str(tmp_path / "a.mp4"), "num_frames": 8, "fps": 2.0},
    ]


OWN_BUDGETS: list[dict[str, Any]] = [
    {"type": "image", "base64": "DATA", "mime_type": "image/png", "extras": {"keep": 0.25}},
    {"type": "image", "base64": "DATA", "mime_type": "image/png", "keep": 0.25},
    {"type": "image", "url": "URL", "extras": {"keep": 0.25}},
    {"type": "image_url", "image_url": {"url": "URL"}, "extras": {"keep": 0.25}},
    {"type": "image_url", "image_url": {"url": "URL"}, "keep": 0.25},
    {"type": "file", "base64": "DATA", "mime_type": "image/png", "extras": {"keep": 0.25}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "DATA"}, "keep": 0.25},
]


@pytest.mark.parametrize("number", range(len(OWN_BUDGETS)))
def test_a_picture_brings_its_own_budget_in_any_form(image: Image.Image, number: int) -> None:
    data = encoded(image)
    written = json.dumps(OWN_BUDGETS[number]).replace("DATA", data).replace("URL", f"data:image/png;base64,{data}")
    for content in (json.loads(written), HumanMessage(content_blocks=[json.loads(written)]).content[0]):
        ((part,),) = [message["content"] for message in read(HumanMessage([content]))]
        assert part["keep"] == 0.25
        assert open_image(part["image"]).tobytes() == image.tobytes()


def test_image_block_writes_the_budget_into_extras(image: Image.Image) -> None:
    assert image_block(image, keep=64)["extras"] == {"keep": 64}
    assert "extras" not in image_block(image)
    with pytest.raises(InvalidInput, match=r"keep=1\.5 of a picture or video is not allowed"):
        image_block(image, keep=1.5)


def test_pictures_with_budgets_of_their_own_are_answered(model: ChatTOPSLlava, picture: Picture) -> None:
    blocks = [image_block(picture(seed=1), keep=1.0), image_block(picture(seed=2), keep=0.25), image_block(picture())]
    call = AIMessage("", tool_calls=[CALL])
    result = ToolMessage([image_block(picture(), keep=32)], tool_call_id="c1")
    answer = model.invoke([*asking("What?", *blocks), call, result])
    pictures = answer.response_metadata["usage"]["pictures"]
    assert [one["keep"] for one in pictures] == [1.0, 0.25, None, 32]
    whole = pictures[0]["visual_tokens"]
    expected = [whole, 0.25 * whole, 0.5 * whole, 32]
    assert [one["layer_average"] for one in pictures] == pytest.approx(expected, abs=0.5)


def test_a_video_is_answered_by_a_family_that_knows_videos(tmp_path: Path) -> None:
    folder = save_qwen2_5_vl(tmp_path / "qwen")
    model = ChatTOPSLlava(model=str(folder), device="cpu", max_tokens=3)
    block = {"type": "video", "base64": base64.b64encode(clip(8)).decode(), "extras": {"num_frames": 4}}
    answer = model.invoke(asking("What happens?", block | {"mime_type": "video/mp4"}))
    assert answer.response_metadata["usage"]["visual_tokens"] > 0
    assert answer.response_metadata["usage"]["video_frames"] == [4]
    for method in ("vidcom2", "evs", "flashvid"):
        pruned = model.bind(method=method, keep=0.4).invoke(asking("What?", block | {"mime_type": "video/mp4"}))
        usage = pruned.response_metadata["usage"]
        (video,) = usage["pictures"]
        # Two frames a token.
        assert [frame["frame"] for frame in video["frames"]] == [0, 2]
        kept = sum(frame["layer_average"] for frame in video["frames"])
        assert kept == pytest.approx(0.4 * usage["visual_tokens"], abs=0.5)


SVG = base64.b64encode(b'<svg xmlns="http://www.w3.org/2000/svg"/>').decode()


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ({"type": "image"}, "block 1 of message 0: the image has no data"),
        ({"type": "image_url", "image_url": {}}, "the image has no data"),
        ({"type": "image", "file_id": "f1"}, "a file id, which means nothing here"),
        ({"type": "image", "base64": "!!!", "mime_type": "image/png"}, "the image is not valid base64"),
        ({"type": "image", "url": "data:image/png;base64"}, "a data URL without data"),
        ({"type": "image", "base64": SVG, "mime_type": "image/svg+xml"}, "not a picture in a known format"),
        ({"type": "image", "url": "/nowhere/cat.png"}, "There is no picture at"),
        (
            {"type": "image", "url": "https://example.org/cat.png"},
            "'example.org' are not fetched; allowed",
        ),
        ({"type": "audio", "base64": "aaaa", "mime_type": "audio/wav"}, "is of the type 'audio'"),
        (
            {"type": "file", "base64": "aaaa", "mime_type": "application/pdf"},
            "a file of the media type 'application/pdf'",
        ),
        ({"type": "media", "data": "a"}, "a file of the media type 'unknown'"),
        ({"type": "media", "mime_type": "audio/wav", "data": "a"}, "a file of the media type 'audio/wav'"),
        ({"type": "text", "text": 3}, "is of the type 'text'"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_place(model: ChatTOPSLlava, block: Any, reason: str) -> None:
    for ask in (model.invoke, lambda messages: list(model.stream(messages))):
        with pytest.raises(InvalidInput) as error:
            ask([HumanMessage([TEXT, block])])
        assert reason.lower() in str(error.value).lower()
        assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("text", ["a" * 88_032, "a" * 300 + ".jpg", "%" * 88_032])
@pytest.mark.parametrize("key", ["url", "base64", "image_url"])
def test_a_long_text_that_is_no_picture_is_not_repeated(model: ChatTOPSLlava, key: str, text: str) -> None:
    block = {"type": "image_url" if key == "image_url" else "image", key: text, "mime_type": "image/png"}
    with pytest.raises(InvalidImage) as error:
        model.invoke([HumanMessage([TEXT, block])])
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "block",
    [
        {"type": {"a": 1}},
        {"type": "image", "source_type": ["url"], "url": "a"},
        {"type": "image", "source_type": "base64"},
        {"type": "image", "source_type": "url"},
        {"type": "image", "base64": "aaaa"},
        {"type": "file", "source_type": "base64", "mime_type": "image/png"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["invoke", "stream", "batch"])
def test_a_block_that_langchain_cannot_convert_is_refused(model: ChatTOPSLlava, block: Any, method: str) -> None:
    messages = [HumanMessage("Hi"), HumanMessage([TEXT, block])]
    with pytest.raises(InvalidInput, match=r"[mM]essage 1 "):
        list(getattr(model, method)([messages] if method == "batch" else messages))


def test_a_result_without_its_call_is_refused(model: ChatTOPSLlava) -> None:
    with pytest.raises(InvalidInput, match="answers the call 'c1', which no assistant message before it made"):
        model.invoke([HumanMessage("Hi"), ToolMessage("A cat.", tool_call_id="c1")])


def test_a_message_of_another_kind_is_refused(model: ChatTOPSLlava) -> None:
    with pytest.raises(InvalidInput, match=r"Message 0 is of the kind 'critic'"):
        model.invoke([ChatMessage(content="Hm.", role="critic")])


def test_a_follow_up_question_sees_the_picture_of_the_first_turn(model: ChatTOPSLlava, photo: Any) -> None:
    first = asking("What number is written?", photo)
    answer = model.invoke([*first, model.invoke(first), HumanMessage("What number is written?")])
    assert answer.text == "5"


CUT = "cut emoji \ud83d?"


def test_lone_surrogates_are_replaced(model: ChatTOPSLlava) -> None:
    assert model.invoke(CUT).text == model.invoke("cut emoji \ufffd?").text
    assert model.invoke("\ud83d\ude00?").text == model.invoke("\U0001f600?").text
    assert model.get_num_tokens(CUT) == model.get_num_tokens("cut emoji \ufffd?")


def test_a_picture_is_a_question_as_part_of_one_or_after_it(model: ChatTOPSLlava, photo: Any) -> None:
    told = model.invoke([HumanMessage([photo])])
    assert told.response_metadata["usage"]["visual_tokens"] == 144
    assert model.invoke([HumanMessage([photo, {"type": "text", "text": None}])]).text == told.text
    apart = model.invoke([HumanMessage("What number is written?"), HumanMessage([photo])])
    assert apart.response_metadata["usage"]["visual_tokens"] == 144
    with pytest.raises(InvalidInput, match="The prompt is empty"):
        model.invoke([HumanMessage([{"type": "text", "text": None}])])


def test_parts_of_a_conversation_are_counted_and_trimmed(model: ChatTOPSLlava) -> None:
    call = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])
    result = ToolMessage("r", tool_call_id="1")
    talk = [SystemMessage("Be brief."), HumanMessage("hi"), call, result, AIMessage("ok"), HumanMessage("more?")]
    count = model.get_num_tokens_from_messages
    assert count([]) == 0
    assert all(0 < count([message]) < count(talk) for message in talk)
    assert count(talk[2:4]) < count(talk[1:4]) < count(talk)
    trim: Any = partial(trim_messages, talk, token_counter=model)
    assert trim(max_tokens=count(talk), strategy="last") == talk
    limit = count([talk[0], *talk[4:]])
    kept = trim(max_tokens=limit, strategy="last", include_system=True)
    assert kept == [talk[0], *talk[4:]]
    assert trim(max_tokens=count(talk[:3]), strategy="first") == talk[:3]
    assert trim(max_tokens=1, strategy="last") == []

"""Videos as content blocks of LangChain's first version, as ``create_video_block`` writes them."""

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain.tools import tool
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.content import create_file_block, create_video_block
from langchain_tops import ChatTOPSLlava, VisualBudget, image_block, without_pictures

from tests.conftest import Picture
from tests.integrations.langchain_tops.conftest import asking
from tests.support.checkpoints_qwen import save_qwen2_5_vl
from tests.support.clips import clip
from tops_engine.conversation.messages import video_message
from tops_engine.engine import shared_engine
from tops_engine.errors import InvalidVideo
from tops_engine.settings import Generation, ModelSpec, Pruning

FORMS = ["base64", "data URL", "path", "file URL", "file block", "video_url"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a clip.mp4"
    path.write_bytes(clip(8))
    return path


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> ChatTOPSLlava:
    """A random model that takes videos."""
    folder = save_qwen2_5_vl(tmp_path_factory.mktemp("qwen"))
    return ChatTOPSLlava(model=str(folder), device="cpu", max_tokens=3, output_version="v1")


def block_of(form: str, path: Path, **extras: Any) -> Any:
    """One video in a form; the extras are keywords, as LangChain's functions take them."""
    data = base64.b64encode(path.read_bytes()).decode()
    url = f"data:video/mp4;base64,{data}"
    if form == "base64":
        return create_video_block(base64=data, mime_type="video/mp4", **extras)
    if form == "file block":
        return create_file_block(base64=data, mime_type="video/mp4", **extras)
    if form == "video_url":
        return {"type": "video_url", "video_url": {"url": url}, "extras": extras}
    return create_video_block(url={"data URL": url, "path": str(path), "file URL": path.as_uri()}[form], **extras)


@pytest.mark.parametrize("form", FORMS)
def test_a_video_in_each_form_gets_the_answer_of_the_engine(watcher: ChatTOPSLlava, video: Path, form: str) -> None:
    block = block_of(form, video, num_frames=4, keep=0.3)
    answer = watcher.invoke([HumanMessage(content_blocks=[block, {"type": "text", "text": "What?"}])])
    engine = shared_engine(ModelSpec(model=watcher.model, device="cpu"))
    asked = [video_message("What?", str(video), num_frames=4, keep=0.3)]
    expected = engine.chat(asked, Pruning(), Generation(max_tokens=3))
    assert answer.text == expected.text
    assert answer.content_blocks == [{"type": "text", "text": expected.text}]
    usage = answer.response_metadata["usage"]
    assert usage["video_frames"] == [4]
    assert [one["keep"] for one in usage["pictures"]] == [0.3]
    assert usage["layer_average"] == expected.usage.layer_average


def test_options_in_the_extras_of_an_extras_keyword_count(
    watcher: ChatTOPSLlava, model: ChatTOPSLlava, video: Path, picture: Picture
) -> None:
    block = create_video_block(url=str(video), extras={"num_frames": 4, "keep": 0.3})
    usage = watcher.invoke(asking("What?", block)).response_metadata["usage"]
    assert usage["video_frames"] == [4]
    assert [one["keep"] for one in usage["pictures"]] == [0.3]
    # A visual budget replaces a budget that stands there.
    pictures = [image_block(picture(seed=seed)) | {"extras": {"extras": {"keep": 1.0}}} for seed in (1, 2)]
    fitted = VisualBudget(144).fit(asking("What?", *pictures), model)
    usage = model.invoke(fitted.messages).response_metadata["usage"]
    assert [one["keep"] for one in usage["pictures"]] == [72, 72]


def test_a_conversation_about_a_video_survives_writing_and_pickling(watcher: ChatTOPSLlava, video: Path) -> None:
    question = HumanMessage(content_blocks=[block_of("base64", video, num_frames=4), {"type": "text", "text": "What?"}])
    talk = [question, watcher.invoke([question]), HumanMessage("And then?")]
    expected = watcher.invoke(talk)
    assert expected.response_metadata["usage"]["video_frames"] == [4]
    for again in (pickle.loads(pickle.dumps(talk)), load(dumpd(talk), allowed_objects="messages")):
        assert again == talk
        assert watcher.invoke(again).text == expected.text
    assert len(json.dumps(dumpd(without_pictures(talk)))) < len(json.dumps(dumpd(talk))) - 1000


async def test_a_video_is_answered_in_events_and_asynchronously(watcher: ChatTOPSLlava, video: Path) -> None:
    question = asking("What?", block_of("path", video))
    whole = watcher.invoke(question)
    stream: Any = watcher.stream_events(question, version="v3")
    assert stream.output.text == whole.text
    assert [block["type"] for block in stream.output.content] == ["text"]
    assert (await watcher.ainvoke(question)).content_blocks == whole.content_blocks


def test_a_tool_returns_a_video(watcher: ChatTOPSLlava, video: Path) -> None:
    @tool
    def record() -> list[Any]:
        """Record the screen."""
        return [{"type": "text", "text": "Here:"}, block_of("base64", video, num_frames=4)]

    call: Any = {"name": "record", "args": {}, "id": "c1", "type": "tool_call"}
    talk = [HumanMessage("What happens?"), AIMessage("", tool_calls=[call]), record.invoke(call)]
    assert watcher.invoke(talk).response_metadata["usage"]["video_frames"] == [4]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (create_video_block(file_id="v1"), "block 0 of message 0: the video is given by a file id"),
        (create_video_block(base64="!!!", mime_type="video/mp4"), "the video is not valid base64"),
        ({"type": "video"}, "the video has no data; send base64 data, a data URL or a path"),
        (create_video_block(url="https://example.org/a.mp4"), "videos from the host 'example.org' are not fetched"),
        (create_video_block(url="/nowhere/a.mp4"), "There is no video at /nowhere/a.mp4"),
        (create_video_block(base64="aGVsbG8=", mime_type="video/mp4"), "not a video in a known format"),
    ],
)
def test_a_video_that_cannot_be_read_is_refused(watcher: ChatTOPSLlava, block: Any, reason: str) -> None:
    with pytest.raises(InvalidVideo) as error:
        watcher.invoke(asking("What?", block))
    assert reason.lower() in str(error.value).lower()

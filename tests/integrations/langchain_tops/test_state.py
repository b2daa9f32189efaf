"""What LangChain and LangGraph keep of conversations with pictures: copies, checkpoints, caches, traces, events."""

import copy
import json
import os
import pickle
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import langsmith
import pytest
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.tracers import LangChainTracer
from langchain_tops import ChatTOPSLlava, image_block, without_pictures
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from tests.conftest import Picture
from tests.integrations.langchain_tops.conftest import SAMPLE, asking
from tests.support.checkpoints_thinking import save_thinking
from tests.support.checkpoints_video import save_onevision
from tops_engine.mini.scenes import generate

CROP = {"title": "crop", "type": "object", "properties": {"side": {"enum": ["left", "right"]}}, "required": ["side"]}


def test_copies_and_pickles_of_a_model_answer_the_same(model: ChatTOPSLlava) -> None:
    answer = model.invoke("Hello", max_tokens=4).text
    for again in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.model_copy()):
        assert again == model
        assert again._get_llm_string() == model._get_llm_string()
        assert again.invoke("Hello", max_tokens=4).text == answer
    bound: Any = model.bind_tools([CROP])
    assert pickle.loads(pickle.dumps(bound)).kwargs == bound.kwargs


def test_the_key_of_a_server_is_pickled_like_any_attribute_and_not_shown() -> None:
    model = ChatTOPSLlava(base_url="http://127.0.0.1:1/v1", api_key="secret")
    assert pickle.loads(pickle.dumps(model)).api_key == model.api_key
    assert "secret" not in repr(model)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield InMemorySaver()
        return
    if request.param == "postgres":
        if "TOPS_POSTGRES" not in os.environ:
            pytest.skip("needs a PostgreSQL server, whose address TOPS_POSTGRES holds")
        postgres = pytest.importorskip("langgraph.checkpoint.postgres", reason="needs langgraph-checkpoint-postgres")
        with postgres.PostgresSaver.from_conn_string(os.environ["TOPS_POSTGRES"]) as saver:
            saver.setup()
            yield saver
        return
    sqlite = pytest.importorskip("langgraph.checkpoint.sqlite", reason="needs langgraph-checkpoint-sqlite")
    with sqlite.SqliteSaver.from_conn_string(str(tmp_path / "state.sqlite")) as saver:
        yield saver


def test_a_graph_goes_on_from_a_checkpoint_with_its_pictures(model: ChatTOPSLlava, photo: Any, saver: Any) -> None:
    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"], keep=1.0)]}

    graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile(checkpointer=saver)
    thread: Any = {"configurable": {"thread_id": uuid4().hex}}
    graph.invoke({"messages": asking("What number is written?", photo)}, thread)
    state = graph.invoke({"messages": [HumanMessage("What number is written?")]}, thread)
    assert [message.text for message in state["messages"]][1::2] == ["5", "5"]
    assert state["messages"][-1].usage_metadata["input_token_details"]["image"] == 144
    kept = graph.get_state(thread).values["messages"][0]
    assert kept.content[0] == photo


def steps(pictures: list[Any]) -> list[BaseMessage]:
    messages: list[BaseMessage] = [HumanMessage("What number?")]
    for number, picture in enumerate(pictures):
        call = {"name": "look", "args": {}, "id": f"c{number}"}
        messages += [AIMessage("", tool_calls=[call]), ToolMessage([image_block(picture)], tool_call_id=f"c{number}")]
    return messages


def test_a_written_history_without_the_data_of_its_pictures() -> None:
    messages = steps([generate(seed, "test").image for seed in range(20)])
    before = copy.deepcopy(messages)
    whole, short = (len(json.dumps(dumpd(each))) for each in (messages, without_pictures(messages)))
    assert messages == before
    assert whole > 500_000
    assert short < 20_000
    line = without_pictures(messages)[2].content[0]["base64"]
    assert line.startswith("[")
    assert "bytes, sha256" in line
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + image_block(SAMPLE)["base64"]}}
    google = {"type": "media", "data": image_block(SAMPLE)["base64"], "mime_type": "image/png"}
    assert len(str(without_pictures([url, google, {"type": "text", "text": "x" * 500}]))) < 1000


class Collector(BaseHTTPRequestHandler):
    """Stands in for LangSmith and keeps what it is sent."""

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def do_PATCH(self) -> None:
        self.do_POST()

    def log_message(self, *args: Any) -> None:
        return


@pytest.mark.parametrize("hides", [False, True])
def test_langsmith_gets_no_pictures_where_the_caller_asks(model: ChatTOPSLlava, hides: bool) -> None:
    server: Any = HTTPServer(("127.0.0.1", 0), Collector)
    server.bodies = []
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    options: dict[str, Any] = {"hide_inputs": without_pictures} if hides else {}
    url = f"http://127.0.0.1:{server.server_port}"
    client = langsmith.Client(api_url=url, api_key="none", auto_batch_tracing=False, **options)
    question = asking("What number is written?", image_block(SAMPLE))
    model.invoke(question, {"callbacks": [LangChainTracer(client=client)]}, max_tokens=2)
    client.flush()
    server.shutdown()
    server.server_close()
    sent = b"".join(server.bodies)
    assert b"What number is written?" in sent
    assert (image_block(SAMPLE)["base64"][:2000].encode() in sent) is not hides
    assert not hides or len(sent) < 20_000


def test_the_third_version_of_events_adds_up_to_the_answer(model: ChatTOPSLlava) -> None:
    whole = model.invoke("Hello")
    stream: Any = model.stream_events("Hello", version="v3")
    assert "".join(stream.text) == whole.text
    assert [block["type"] for block in stream.output.content] == ["text"]
    assert stream.output.response_metadata["finish_reason"] == "stop"
    assert stream.output.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]  # type: ignore[index]


def test_calls_are_events_and_blocks(model: ChatTOPSLlava) -> None:
    bound = model.bind_tools([CROP], tool_choice="crop")
    stream: Any = bound.stream_events("Hello", version="v3")
    calls = stream.output.tool_calls
    assert [call["name"] for call in calls] == ["crop"]
    message = bound.invoke("Hello")
    assert [block["type"] for block in message.content_blocks] == ["tool_call"]
    assert message.tool_calls[0]["args"] == calls[0]["args"]


async def test_asynchronous_events_of_a_thinking_model(tmp_path: Path) -> None:
    model = ChatTOPSLlava(model=str(save_thinking(tmp_path, "opened")), device="cpu", thinking=4, max_tokens=9)
    whole = model.invoke("Hello")
    stream: Any = await model.astream_events("Hello", version="v3")
    output = await stream.output
    assert [block["type"] for block in output.content] == [block["type"] for block in whole.content_blocks]
    assert output.content[0]["type"] == "reasoning"
    profile = model.profile
    assert profile is not None
    assert profile["reasoning_output"]


def test_blocks_of_the_first_version_go_in_and_come_out(model: ChatTOPSLlava, photo: Any) -> None:
    message = HumanMessage(content_blocks=[{"type": "text", "text": "What number is written?"}, photo])
    v1 = model.model_copy(update={"output_version": "v1"}).invoke([message], keep=1.0)
    assert [block["type"] for block in v1.content] == ["text"]  # type: ignore[index]
    assert v1.text == model.invoke([message], keep=1.0).text == "5"
    again = model.invoke([message, v1, HumanMessage("What number is written?")], keep=1.0)
    assert again.text == "5"


def test_a_profile_says_what_the_checkpoint_can_do(tmp_path: Path) -> None:
    video = ChatTOPSLlava(model=str(save_onevision(tmp_path)), device="cpu").profile
    mini = ChatTOPSLlava(model="mini").profile
    assert video is not None
    assert mini is not None
    assert video["video_inputs"]
    assert not mini["video_inputs"]
    assert not mini["reasoning_output"]
    assert mini["max_output_tokens"] == mini["max_input_tokens"] == 4096
    served = ChatTOPSLlava(base_url="http://127.0.0.1:1/v1").profile
    assert served is not None
    assert not served["video_inputs"]


def test_a_rate_limiter_holds_calls_back(model: ChatTOPSLlava) -> None:
    limiter = InMemoryRateLimiter(requests_per_second=4, check_every_n_seconds=0.01, max_bucket_size=1)
    limited = model.model_copy(update={"rate_limiter": limiter})
    begun = time.monotonic()
    for _ in range(3):
        limited.invoke("Hello", max_tokens=1)
    assert time.monotonic() - begun >= 0.45


async def test_a_stream_that_is_closed_in_mid_answer_leaves_the_engine_free(model: ChatTOPSLlava) -> None:
    stream: Any = model.astream("Hello", max_tokens=400)
    await anext(stream)
    await stream.aclose()
    assert (await model.ainvoke("Hello")).text == model.invoke("Hello").text


def test_pictures_and_their_budgets_are_part_of_the_key_of_a_cache(model: ChatTOPSLlava, picture: Picture) -> None:
    keys = {
        json.dumps(dumpd(asking("What?", block)))
        for block in (image_block(picture()), image_block(picture(seed=1)), image_block(picture(), keep=0.25))
    }
    assert len(keys) == 3
    free: Any = model.bind_tools([CROP])
    strict: Any = model.bind_tools([CROP], strict=True)
    assert free.kwargs != strict.kwargs

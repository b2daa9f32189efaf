"""The chat model by base_url: the same answers, from a server, over real sockets."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import ConfigurableField
from langchain_tops import ChatTOPSLlava, image_block
from pydantic import BaseModel, Field

from tests.integrations.langchain_tops.conftest import SAMPLE, asking
from tests.support.chat_server import ChatServer, until
from tops_engine.encoding.encoder import shared_encoder
from tops_engine.engine import shared_engine
from tops_engine.errors import InvalidImage, InvalidInput, ModelNotFound, ServerError, ServerTimeout
from tops_engine.settings import ModelSpec, Pruning

LOCAL = {"model": "mini", "device": "cpu", "keep": 0.5, "stages": "first", "max_tokens": 100}


class Card(BaseModel):
    """A card with a digit."""

    digit: int = Field(ge=0, le=9)


def look(where: str) -> str:
    """Look somewhere."""
    return f"Nothing {where}."


@pytest.fixture
def server() -> Iterator[ChatServer]:
    engine = shared_engine(ModelSpec(model="mini", device="cpu"))
    with ChatServer(engine, Pruning(keep=0.5, stages="first")).running() as server:
        yield server


@pytest.fixture
def remote(server: ChatServer) -> ChatTOPSLlava:
    return ChatTOPSLlava(base_url=server.url, max_tokens=100, max_retries=0)


@pytest.fixture
def local() -> ChatTOPSLlava:
    return ChatTOPSLlava(**LOCAL)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 3},
        {"stop": ["star"]},
        {"temperature": 1.2, "seed": 3, "top_k": 9},
        {"tools": [look], "tool_choice": "any"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": Card.model_json_schema()}}},
        {"keep": 0.25},
    ],
)
async def test_answers_are_the_local_ones(
    remote: ChatTOPSLlava, local: ChatTOPSLlava, photo: Any, options: dict[str, Any]
) -> None:
    question = asking("Describe the picture.", photo)
    expected = local.invoke(question, **options)

    def check(message: AIMessage) -> None:
        assert message.text == expected.text
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [
            (call["name"], call["args"]) for call in expected.tool_calls
        ]
        usage: Any = message.usage_metadata
        wanted: Any = expected.usage_metadata
        for count in ("input_tokens", "output_tokens", "total_tokens"):
            assert usage[count] == wanted[count]
        assert usage["input_token_details"]["image_kept"] == (36 if "keep" in options else 72)
        for name in ("finish_reason", "model_name", "model_provider"):
            assert message.response_metadata[name] == expected.response_metadata[name]
        assert message.response_metadata["timings"]["total"] > 0
        assert "flops" not in message.response_metadata

    check(remote.invoke(question, **options))
    check(await remote.ainvoke(question, **options))
    pieces = list(remote.stream(question, **options))
    check(sum(pieces[1:], pieces[0]))
    chunks = [chunk async for chunk in remote.astream(question, **options)]
    check(sum(chunks[1:], chunks[0]))
    assert chunks[-1].chunk_position == "last"
    assert chunks[-1].response_metadata["timings"]["first_token"] > 0


def test_batches_are_bounded_and_in_order(server: ChatServer, remote: ChatTOPSLlava, photo: Any) -> None:
    texts = ["What number is written?", "Describe the picture.", "Hello"]
    questions = [asking(text, photo) for text in texts] * 4
    expected = [remote.invoke(question).text for question in questions[:3]] * 4
    server.delay = 0.2
    assert [answer.text for answer in remote.batch(questions, {"max_concurrency": 5})] == expected
    assert server.most_at_once == 5
    server.delay = 60
    with ThreadPoolExecutor() as others:
        answering = others.submit(remote.batch, questions)
        until(lambda: server.most_at_once == 12)
        server.delay = 0
        assert [answer.text for answer in answering.result()] == expected
    answers = remote.batch([*questions[:2], []], return_exceptions=True)
    assert [type(answer) for answer in answers] == [AIMessage, AIMessage, InvalidInput]


async def test_many_at_once_need_no_threads(server: ChatServer, remote: ChatTOPSLlava, photo: Any) -> None:
    server.delay = 60
    before = threading.active_count()
    answering = asyncio.create_task(remote.abatch([asking("What number is written?", photo)] * 60))
    await asyncio.to_thread(until, lambda: server.most_at_once == 60)
    # The server's own and those that read pictures are a few.
    assert threading.active_count() - before < 30
    server.delay = 0
    assert {answer.text for answer in await answering} == {"5"}
    server.most_at_once, server.delay = 0, 0.1
    await remote.abatch(["Hello"] * 12, {"max_concurrency": 4})
    assert server.most_at_once == 4


async def test_who_goes_away_stops_the_server(server: ChatServer, remote: ChatTOPSLlava, photo: Any) -> None:
    endless = remote.bind(
        max_tokens=4000,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "array", "minItems": 900, "items": {"type": "integer"}}},
        },
    )
    question = asking("What number?", photo)
    task = asyncio.create_task(endless.ainvoke(question))
    await asyncio.to_thread(until, lambda: server.requests)
    task.cancel()
    stream: Any = endless.astream(question)
    await anext(stream)
    await stream.aclose()
    blocking: Any = endless.stream(question)
    next(blocking)
    blocking.close()
    await asyncio.to_thread(until, lambda: server.num_abandoned == 3)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(remote: ChatTOPSLlava, photo: Any, method: Any) -> None:
    structured = remote.with_structured_output(Card, method=method)
    question = asking("What number is written?", photo)
    assert isinstance(structured.invoke(question), Card)
    assert isinstance(await structured.ainvoke(question), Card)
    cut = remote.with_structured_output(Card, method=method, max_tokens=2)
    with pytest.raises(OutputParserException, match="cut off after 2 tokens"):
        cut.invoke(question)


def test_json_mode_is_any_object(server: ChatServer, remote: ChatTOPSLlava, photo: Any) -> None:
    answer = remote.invoke(asking("What number?", photo), response_format={"type": "json_object"})
    assert answer.text.startswith("{")
    assert server.requests[-1]["response_format"] == {"type": "json_object"}


def test_tools_and_their_results(server: ChatServer, remote: ChatTOPSLlava, local: ChatTOPSLlava, photo: Any) -> None:
    question = asking("What number is written?", photo)
    called = remote.bind_tools([look], tool_choice="look").invoke(question)
    (call,) = called.tool_calls
    assert (call["name"], called.response_metadata["finish_reason"]) == ("look", "tool_calls")
    history = [*question, called, ToolMessage(["Here:", photo], tool_call_id=call["id"])]
    assert remote.bind_tools([look]).invoke(history).text == local.bind_tools([look]).invoke(history).text
    sent = server.requests[-1]["messages"]
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == call["id"]
    assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == call["args"]
    cut = remote.bind_tools([look], tool_choice="any").invoke(question, max_tokens=14)
    assert cut.invalid_tool_calls
    assert not cut.tool_calls


async def test_agents(remote: ChatTOPSLlava, photo: Any) -> None:
    agent = create_agent(remote, [look], response_format=Card)
    result = await agent.ainvoke({"messages": asking("What number is written?", photo)})
    assert isinstance(result["structured_response"], Card)


def test_the_rest_is_the_servers(server: ChatServer, photo: Any) -> None:
    model: Any = ChatTOPSLlava(base_url=server.url.removesuffix("/v1"))
    assert (model.base_url, model.model, model.keep, model.method, model.max_tokens) == (
        server.url,
        None,
        None,
        None,
        256,
    )
    assert model.invoke("Hello").response_metadata["model_name"] == "mini"
    assert "mm_processor_kwargs" not in server.requests[-1]
    smaller = ChatTOPSLlava(base_url=server.url, keep=36).invoke(asking("What number is written?", photo))
    assert smaller.response_metadata["pruning"]["keep"] == 36
    with pytest.raises(InvalidInput, match="cannot prune by divprune"):
        model.invoke(asking("What?", photo), method="divprune")
    for option in ({"device": "cpu"}, {"quantization": "4bit"}, {"revision": "main"}):
        with pytest.raises(ValueError, match="is decided where the model runs"):
            ChatTOPSLlava(base_url=server.url, **option)
        with pytest.raises(InvalidInput, match="is decided where the model runs"):
            model.invoke("Hello", **option)
    for wrong in ({"base_url": "localhost:8000"}, {"base_url": server.url, "keep": 7.5}, {"base_url": 5}, {"kep": 1}):
        with pytest.raises(
            ValueError, match=r"not an address of a server|is not allowed|valid string|no option"
        ) as caught:
            ChatTOPSLlava(**wrong, api_key="secret")
        assert "secret" not in str(caught.value)


def test_configurable_fields_and_copies_leave_it_to_the_server(server: ChatServer, remote: ChatTOPSLlava) -> None:
    configurable = remote.configurable_fields(max_tokens=ConfigurableField(id="length"))
    answer = configurable.with_config({"configurable": {"length": 3}}).invoke("Hello")
    assert answer.response_metadata["finish_reason"] == "length"
    assert remote.model_copy().invoke("Hello").text.startswith(answer.text)
    assert all(request["model"] == "mini" for request in server.requests)


def test_errors(server: ChatServer, remote: ChatTOPSLlava, photo: Any) -> None:
    with pytest.raises(ServerError, match="No server answers at"):
        ChatTOPSLlava(base_url="http://127.0.0.1:1/v1", max_retries=0).invoke("Hello")
    with pytest.raises(ModelNotFound, match=r"no model 'other'; it has mini\."):
        remote.invoke("Hello", model="other")
    with pytest.raises(InvalidImage, match="Block 0 of message 0: the image is not valid base64"):
        remote.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,&"}}])])
    with pytest.raises(InvalidInput, match="frames"):
        remote.invoke([HumanMessage([{"type": "video", "url": "x.mp4"}, {"type": "text", "text": "What?"}])])
    server.failures = [503]
    with pytest.raises(ServerError, match="It went wrong"):
        remote.invoke("Hello")
    server.failures = [503]
    assert remote.invoke("Hello", max_retries=2).text
    server.delay = 10
    with pytest.raises(ServerTimeout, match=r"within 0\.2 seconds"):
        remote.invoke("Hello", timeout=0.2)
    with pytest.raises(ServerTimeout):
        ChatTOPSLlava(base_url=server.url, timeout=0.2, max_retries=0).invoke("Hello")
    with ChatServer(server.engine, server.pruning, key="secret").running() as guarded:
        with pytest.raises(ServerError, match="refuses the API key"):
            ChatTOPSLlava(base_url=guarded.url).invoke("Hello")
        model = ChatTOPSLlava(base_url=guarded.url, api_key="secret")
        assert model.invoke("Hello").text
        assert "secret" not in repr(model) + str(model._get_llm_string())


def test_a_cache_tells_servers_and_budgets_apart(server: ChatServer, photo: Any) -> None:
    cache = InMemoryCache()
    question = asking("What number is written?", photo)
    options: list[dict[str, Any]] = [{}, {"keep": 0.25}, {"temperature": 1.0}, {"model": "mini"}]
    for option in options:
        ChatTOPSLlava(base_url=server.url, cache=cache, **option).invoke(question)
    ChatTOPSLlava(base_url=server.url, cache=cache).invoke(question)
    assert len(server.requests) == len(options)


def test_tokens_are_counted_by_the_server(remote: ChatTOPSLlava, local: ChatTOPSLlava, photo: Any) -> None:
    question = asking("What number is written?", photo)
    usage = remote.invoke(question).usage_metadata
    assert usage is not None
    assert remote.get_num_tokens_from_messages(question) == usage["input_tokens"]
    assert remote.get_num_tokens("What number?") == local.get_num_tokens("What number?")


def test_profile_and_tracing(server: ChatServer) -> None:
    unnamed = ChatTOPSLlava(base_url=server.url)
    profile = unnamed.profile
    assert profile is not None
    assert profile["structured_output"]
    assert "name" not in profile
    assert "max_input_tokens" not in profile
    assert "ls_model_name" not in unnamed._get_ls_params()
    assert ChatTOPSLlava(base_url=server.url, model="mini")._get_ls_params()["ls_model_name"] == "mini"


def test_without_base_url_nothing_changes(local: ChatTOPSLlava) -> None:
    assert (local.model, local.keep, local.method) == ("mini", 0.5, "tops")


def test_encoded_pictures_have_the_answers_of_the_pictures(server: ChatServer, remote: ChatTOPSLlava) -> None:
    here = shared_encoder(ModelSpec(model="mini", device="cpu"))
    server.encoded = {here.encode(SAMPLE, Pruning(keep=0.5)).image_embeds: SAMPLE}
    encoding = ChatTOPSLlava(base_url=server.url, encode="here", device="cpu", keep=0.5, max_tokens=24, max_retries=0)
    question = asking("Describe the picture.", image_block(SAMPLE))
    answer, expected = encoding.invoke(question), remote.invoke(question, max_tokens=24)
    assert answer.content == expected.content
    assert "".join(str(chunk.content) for chunk in encoding.stream(question)) == expected.content
    assert "image_embeds" in str(server.requests[0])
    assert answer.usage_metadata is not None
    assert encoding.get_num_tokens_from_messages(question) == answer.usage_metadata["input_tokens"]
    assert ChatTOPSLlava(**encoding.model_dump(exclude_none=True, include={"base_url", "encode"})).encode == "here"
    assert encoding._get_llm_string() != remote._get_llm_string()
    with pytest.raises(InvalidInput, match="vLLM ends when pictures with different numbers of tokens meet"):
        encoding.invoke(question, keep=0.25)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"encode": "here"}, "encode is for a model behind a server; give its base_url"),
        ({"encode": "there", "base_url": "http://host:8000"}, "give `here`, or the address of an encoder"),
        (
            {"encode": "http://a:8100", "base_url": "http://host:8000", "device": "cpu"},
            "device is decided where the model runs",
        ),
    ],
)
def test_encode_that_cannot_be_followed_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ChatTOPSLlava(**options)

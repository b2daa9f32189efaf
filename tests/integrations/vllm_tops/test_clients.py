"""Test the engine's and LangChain's clients of a real `tops serve`, with mini."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from tests.integrations.vllm_tops.test_server import QUESTIONS, pictures
from tops_engine.conversation.messages import user_message
from tops_engine.conversation.tools import Tools
from tops_engine.engine import Engine
from tops_engine.errors import ContextLengthError, InvalidInput, ModelNotFound, ServerError
from tops_engine.remote import RemoteAnswer, RemoteEngine
from tops_engine.settings import Generation, ModelSpec, Pruning

__all__ = ["pictures"]

pytestmark = pytest.mark.vllm

# The options that docs/serving.md names for agents.
FOR_AGENTS = [
    *("--trust-request-mm-kwargs", "--enable-prompt-tokens-details"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    *("--structured-outputs-config.backend", "xgrammar"),
    *("--structured-outputs-config.disable_any_whitespace", "true"),
]

# vLLM's grammars for calls allow any white space. mini is not trained to write calls and may never end it.
FREELY: dict[str, Any] = {"temperature": 2.0, "seed": 1, "max_tokens": 300}

STAGE = Pruning(keep=0.5, stages="first")


def look(where: Literal["left", "right"]) -> str:
    """Look somewhere."""
    return f"Nothing on the {where}."


LOOK = {
    "name": "look",
    "parameters": {"type": "object", "properties": {"where": {"enum": ["left", "right"]}}, "required": ["where"]},
}
CARD = {
    "title": "Card",
    "type": "object",
    "properties": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["digit"],
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve mini with half of its visual tokens and an API key."""
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, environment, serving

    # vLLM 0.32 on a CPU crashes at a request with a seed whose prompt is read in several chunks.
    whole = ["--max-num-batched-tokens", "1024"]
    command = [*TOPS, "serve", "mini", "--keep", "0.5", "--api-key", "secret", *FOR_AGENTS, *OPTIONS, *whole]
    with serving([(command, environment())], tmp_path_factory.mktemp("logs")) as (server,):
        yield server.url


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(ModelSpec(model="mini", device="cpu"))


@pytest.fixture
def remote(url: str) -> Iterator[RemoteEngine]:
    remote = RemoteEngine(url, api_key="secret", max_retries=0, timeout=120)
    yield remote
    remote.close()


@pytest.fixture
def model(url: str) -> Any:
    from langchain_tops import ChatTOPSLlava

    return ChatTOPSLlava(base_url=url, api_key="secret", max_retries=0, max_tokens=24)


def asking(question: str, *images: Any) -> Any:
    from langchain_core.messages import HumanMessage
    from langchain_tops import image_block

    return [HumanMessage([*map(image_block, images), {"type": "text", "text": question}])]


@pytest.mark.parametrize("pruning", [None, Pruning(keep=0.222)])
def test_remote_answers_are_those_of_the_engine(
    remote: RemoteEngine, engine: Engine, pictures: list[Any], pruning: Pruning | None
) -> None:
    generation = Generation(max_tokens=24)
    conversations = [[user_message(question, image)] for question in QUESTIONS for image in pictures]
    here = engine.batch(conversations, Pruning(keep=pruning.keep, stages="first") if pruning else STAGE, generation)
    for answer, expected in zip(remote.batch(conversations, pruning, generation), here, strict=True):
        assert (answer.text, answer.finish_reason) == (expected.text, expected.finish_reason)
        assert answer.usage is not None
        assert answer.usage.input_tokens == expected.usage.input_tokens
        assert answer.usage.completion_tokens == expected.usage.completion_tokens
        assert answer.usage.visual_tokens == (32 if pruning else 72)
        assert answer.usage.reused_tokens is not None
    *pieces, last = remote.stream(conversations[4], pruning, generation)
    # vLLM joins what a client has not read yet.
    assert len(pieces) > 1
    assert isinstance(last, RemoteAnswer)
    assert last.text == "".join(map(str, pieces)) == here[4].text
    # The same prompt a second time.
    assert last.usage is not None
    assert last.usage.reused_tokens


def test_settings_have_their_effect(remote: RemoteEngine, engine: Engine, pictures: list[Any]) -> None:
    describe = [user_message("Describe the picture.", pictures[0])]
    whole = engine.chat(describe, STAGE).text
    assert remote.chat(describe, generation=Generation(stop=(", digit",))).text == whole[: whole.index(", digit")]
    cut = remote.chat(describe, generation=Generation(max_tokens=3))
    assert cut.finish_reason == "length"
    freely = Generation(temperature=1.5, top_k=20, top_p=0.9, seed=7, repetition_penalty=1.2)
    assert remote.chat(describe, generation=freely).text == remote.chat(describe, generation=freely).text != whole
    assert remote.count_tokens(describe) == engine.chat(describe, STAGE).usage.input_tokens
    tokens = engine.family.tokenizer.encode("What number?", add_special_tokens=False)
    assert remote.tokenize("What number?") == tokens


def test_calls_and_schemas(remote: RemoteEngine, pictures: list[Any]) -> None:
    question = [user_message("What number is written?", pictures[0])]
    tools = Tools([{"type": "function", "function": LOOK}], "required", parallel=False)
    freely = Generation(**FREELY)
    answer = remote.chat(question, generation=freely, tools=tools)
    (call,) = answer.tool_calls
    assert call.name == "look"
    assert call.arguments["where"] in ("left", "right")
    *_, last = remote.stream(question, generation=freely, tools=tools)
    assert isinstance(last, RemoteAnswer)
    assert last.tool_calls[0].name == "look"
    made = {"id": "a", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    result = [{"type": "text", "text": "Here."}, {"type": "image", "image": pictures[1]}]
    history = [*question, {"role": "assistant", "tool_calls": [made]}, {"role": "tool", "content": result}]
    with pytest.raises(InvalidInput, match="Unknown role: tool"):
        # mini's chat template does not support tools; the engine adds them itself, vLLM does not.
        remote.chat(history, tools=Tools(tools.functions, "none"))
    cut = remote.chat(question, generation=Generation(max_tokens=12), tools=tools)
    assert cut.finish_reason == "length"
    assert not cut.tool_calls


def test_cancelling_stops_the_server_within_a_token(url: str, remote: RemoteEngine, pictures: list[Any]) -> None:
    cancel = threading.Event()
    endless = Generation(max_tokens=900, json_schema={"type": "array", "items": {"type": "integer"}, "minItems": 400})
    pieces = []
    for piece in remote.stream([user_message("Count.", pictures[0])], generation=endless, cancel=cancel):
        pieces.append(piece)
        if len(pieces) == 5:
            cancel.set()
    answer = pieces[-1]
    assert isinstance(answer, RemoteAnswer)
    assert answer.finish_reason == "cancelled"
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens < 30


def test_refusals_are_errors_of_the_engine(url: str, remote: RemoteEngine, pictures: list[Any]) -> None:
    question = [user_message("What number is written?", pictures[0])]
    with pytest.raises(ServerError, match="refuses the API key"):
        RemoteEngine(url).chat(question)
    with pytest.raises(ModelNotFound, match=r"no model 'other'; it has mini\."):
        RemoteEngine(url, "other", "secret").chat(question)
    with pytest.raises(InvalidInput, match=r"keeps 0\.5 at most"):
        remote.chat(question, Pruning(keep=0.9))
    with pytest.raises(InvalidInput, match="cannot prune by divprune"):
        remote.chat(question, Pruning(method="divprune", keep=0.2))
    with pytest.raises(ContextLengthError, match="maximum context length is 1024"):
        remote.chat([user_message("What? " * 400, *pictures)])
    assert remote.chat(question).text == "5"


async def test_langchain(model: Any, engine: Engine, pictures: list[Any]) -> None:
    question = asking("Describe the picture.", pictures[0])
    expected = engine.chat([user_message("Describe the picture.", pictures[0])], STAGE, Generation(max_tokens=24))

    def check(message: Any) -> None:
        assert message.text == expected.text
        assert message.usage_metadata["input_tokens"] == expected.usage.input_tokens
        assert message.usage_metadata["output_tokens"] == expected.usage.completion_tokens
        assert message.usage_metadata["input_token_details"]["image_kept"] == 72
        assert message.response_metadata["model_name"] == "mini"

    check(model.invoke(question))
    check(await model.ainvoke(question))
    chunks = list(model.stream(question))
    check(sum(chunks[1:], chunks[0]))
    chunks = [chunk async for chunk in model.astream(question)]
    check(sum(chunks[1:], chunks[0]))
    for message in [*model.batch([question] * 6), *await model.abatch([question] * 40)]:
        check(message)
    less = model.invoke(question, keep=0.111)
    assert less.usage_metadata["input_token_details"]["image_kept"] == 16
    assert less.response_metadata["pruning"]["stages"] == "first"
    assert model.get_num_tokens_from_messages(question) == expected.usage.input_tokens
    with pytest.raises(InvalidInput, match=r"keeps 0\.5 at most"):
        model.invoke(question, keep=1.0)


async def test_langchains_objects_and_tools(model: Any, pictures: list[Any]) -> None:
    question = asking("What number is written?", pictures[0])
    for method in ("json_schema", "function_calling"):
        structured = model.with_structured_output(CARD, method=method, **FREELY)
        for answer in (structured.invoke(question), await structured.ainvoke(question)):
            assert answer["digit"] in range(10)
    assert model.with_structured_output(CARD).invoke(question)["digit"] in range(10)
    bound = model.bind_tools([look], tool_choice="any", parallel_tool_calls=False, **FREELY)
    for message in (bound.invoke(question), await bound.ainvoke(question)):
        (call,) = message.tool_calls
        assert call["name"] == "look"
        assert message.response_metadata["finish_reason"] == "tool_calls"
    assert not model.bind_tools([look]).invoke(question).tool_calls
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(bound.ainvoke(question), 0.01)

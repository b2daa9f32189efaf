"""Tools: every way to choose, calls and results, agents and graphs."""

from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_tops import ChatTOPSLlava
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel, Field

from tests.integrations.langchain_tops.conftest import asking
from tops_engine.engine import shared_engine
from tops_engine.errors import InvalidInput
from tops_engine.settings import ModelSpec


@tool
def look(side: str = "left") -> str:
    """Look at one side."""
    return f"Nothing on the {side}."


@tool
def count() -> str:
    """Count the things."""
    return "There are 3 things."


class Zoom(BaseModel):
    """Look closer."""

    factor: int = Field(ge=2, le=4)


FORCED: list[tuple[Any, list[str]]] = [
    ("any", ["look", "count", "Zoom"]),
    ("required", ["look", "count", "Zoom"]),
    (True, ["look", "count", "Zoom"]),
    ("count", ["count"]),
    ({"type": "function", "function": {"name": "Zoom"}}, ["Zoom"]),
    ({"type": "tool", "name": "count"}, ["count"]),
]


@pytest.mark.parametrize(("choice", "allowed"), FORCED, ids=str)
def test_demanded_calls(model: ChatTOPSLlava, choice: Any, allowed: list[str]) -> None:
    bound = model.bind_tools([look, count, Zoom], tool_choice=choice)
    answer = bound.invoke("Hello!")
    assert answer.tool_calls
    assert {call["name"] for call in answer.tool_calls} <= set(allowed)
    assert len({call["id"] for call in answer.tool_calls}) == len(answer.tool_calls)
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    for call in answer.tool_calls:
        if call["name"] == "Zoom":
            Zoom(**call["args"])


@pytest.mark.parametrize("choice", ["none", False])
def test_forbidden_calls(model: ChatTOPSLlava, choice: Any) -> None:
    answer = model.bind_tools([look], tool_choice=choice).invoke("Hello!")
    assert answer.tool_calls == []
    assert answer.text


@pytest.mark.parametrize("choice", [None, "auto"])
def test_free_choice_streams_text_as_it_comes(model: ChatTOPSLlava, choice: Any) -> None:
    chunks = list(model.bind_tools([look], tool_choice=choice).stream("Hello!"))
    assert len([chunk for chunk in chunks if chunk.text]) > 3


def test_one_call_at_a_time(model: ChatTOPSLlava) -> None:
    bound = model.bind_tools([look, count], tool_choice="any", parallel_tool_calls=False)
    assert len(bound.invoke("Hello!", temperature=2.0, seed=1).tool_calls) == 1


def test_parallel_calls_keep_apart_in_a_stream(llava_folder: Path) -> None:
    bound = ChatTOPSLlava(model=str(llava_folder), device="cpu").bind_tools([look, count], tool_choice="any")
    for seed in range(20):
        options: dict[str, Any] = {"temperature": 2.0, "seed": seed, "max_tokens": 600}
        whole = bound.invoke("Hello!", **options)
        if len(whole.tool_calls) > 1 and not whole.invalid_tool_calls:
            break
    else:
        pytest.fail("no seed made two calls")
    streamed: Any = None
    for chunk in bound.stream("Hello!", **options):
        streamed = chunk if streamed is None else streamed + chunk
    assert [call["args"] for call in streamed.tool_calls] == [call["args"] for call in whole.tool_calls]
    assert [chunk["index"] for chunk in streamed.tool_call_chunks] == list(range(len(whole.tool_calls)))
    shared_engine(ModelSpec(model=str(llava_folder), device="cpu")).unload()


def test_a_call_that_is_cut_off_is_an_invalid_call(model: ChatTOPSLlava) -> None:
    bound = model.bind_tools([look], tool_choice="any")
    streamed: Any = None
    for chunk in bound.stream("Hello!", max_tokens=15):
        streamed = chunk if streamed is None else streamed + chunk
    for message in (bound.invoke("Hello!", max_tokens=15), streamed):
        assert message.tool_calls == []
        assert message.invalid_tool_calls[0]["id"]
        assert message.response_metadata["finish_reason"] == "length"
        assert message.response_metadata["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("choice", ["glance", {"type": "function", "function": {"name": "glance"}}, 3])
def test_a_choice_that_names_no_tool_is_refused_when_bound(model: ChatTOPSLlava, choice: Any) -> None:
    with pytest.raises(InvalidInput, match=r"glance|The tool choice 3"):
        model.bind_tools([look], tool_choice=choice)


def test_parameters_a_grammar_cannot_follow_are_left_to_the_tool(model: ChatTOPSLlava) -> None:
    items = {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 2}
    schema = {"title": "pick", "type": "object", "properties": {"items": items}, "required": ["items"]}
    (call,) = model.bind_tools([schema], tool_choice="pick").invoke("Hello!").tool_calls
    assert all(isinstance(item, bool) for item in call["args"]["items"])
    schema["properties"] = {"items": {"type": "integer", "minimum": 5, "maximum": 3}}
    with pytest.raises(InvalidInput, match="The parameters of the tool 'pick' are unusable"):
        model.bind_tools([schema])


def test_a_demanded_call_without_tools_is_refused(model: ChatTOPSLlava) -> None:
    with pytest.raises(InvalidInput, match="there are no functions"):
        model.bind_tools([], tool_choice="any")


class Scene(BaseModel):
    """A scene."""

    number: int = Field(ge=0, le=9)


def test_an_agent_answers_in_a_schema(model: ChatTOPSLlava, photo: Any) -> None:
    agent: Any = create_agent(model, [], response_format=Scene)
    state = agent.invoke({"messages": asking("What number is written?", photo)})
    assert state["structured_response"] == Scene(number=5)


class Scripted(ChatTOPSLlava):
    """mini with the judgement it lacks: look once, then answer."""

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        looked = any(isinstance(message, ToolMessage) for message in messages)
        if kwargs.get("tools"):
            kwargs["tool_choice"] = "none" if looked else "any"
        return super()._generate(messages, *args, **kwargs)


def test_an_agent_looks_at_the_picture_its_tool_returns(photo: Any) -> None:
    @tool
    def show() -> list[Any]:
        """Show the scene."""
        return [{"type": "text", "text": "The scene:"}, photo]

    agent: Any = create_agent(Scripted(model="mini", device="cpu", keep=1.0, max_tokens=60), [show])
    state = agent.invoke({"messages": [HumanMessage("What number is written?")]})
    kinds = [type(message) for message in state["messages"]]
    assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    answer = state["messages"][-1]
    assert answer.usage_metadata["input_token_details"]["image"] == 144


def test_a_graph_streams_the_models_tokens(model: ChatTOPSLlava) -> None:
    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    graph = builder.compile()
    stream: Any = graph.stream({"messages": [HumanMessage("Hello")]}, stream_mode="messages")
    pieces = [message.text for message, _ in stream]
    assert "".join(pieces) == model.invoke("Hello").text
    assert len(pieces) > 3


AT_PROVIDERS: list[tuple[dict[str, Any], str]] = [
    ({"type": "web_search_preview"}, "web_search_preview"),
    ({"type": "web_search_20250305", "name": "web_search", "max_uses": 3}, "web_search_20250305"),
    ({"type": "code_interpreter", "container": {"type": "auto"}}, "code_interpreter"),
    ({"type": "image_generation"}, "image_generation"),
    ({"type": "mcp", "server_label": "x", "server_url": "http://x"}, "mcp"),
    ({"google_search": {}}, "google_search"),
    ({"type": "custom", "name": "x"}, "custom"),
]


@pytest.mark.parametrize("tools", [True, 3, "look", {"name": "look", "parameters": {}}], ids=str)
def test_tools_that_are_no_list_are_refused(model: ChatTOPSLlava, tools: Any) -> None:
    with pytest.raises(InvalidInput, match="Tools are given as a list, not as "):
        model.bind_tools(tools)


@pytest.mark.parametrize(("provided", "name"), AT_PROVIDERS, ids=[name for _, name in AT_PROVIDERS])
def test_a_tool_that_runs_at_a_provider_is_refused_by_name(
    model: ChatTOPSLlava, provided: dict[str, Any], name: str
) -> None:
    for use in (
        lambda: model.bind_tools([look, provided]),
        lambda: model.invoke("Hello!", tools=[provided]),
        lambda: model.get_num_tokens_from_messages([HumanMessage("Hello!")], [provided]),
    ):
        with pytest.raises(InvalidInput, match=f"The tool '{name}' runs at its provider"):
            use()


PARAMETERS = {"type": "object", "properties": {"side": {"const": "left"}}, "required": ["side"]}


@pytest.mark.parametrize(
    "given",
    [
        {"type": "function", "function": {"name": "look", "parameters": PARAMETERS, "strict": True}},
        {"type": "function", "name": "look", "parameters": PARAMETERS, "strict": True},
        {"name": "look", "input_schema": PARAMETERS},
        {"name": "look", "strict": True, "schema": PARAMETERS},
        {"toolSpec": {"name": "look", "inputSchema": {"json": PARAMETERS}}},
        {"title": "look", **PARAMETERS},
    ],
)
def test_a_function_is_read_in_the_form_of_any_provider(model: ChatTOPSLlava, given: dict[str, Any]) -> None:
    (call,) = model.bind_tools([given], tool_choice="look").invoke("Hello!").tool_calls
    assert (call["name"], call["args"]) == ("look", {"side": "left"})


@pytest.mark.parametrize("given", [{}, {"description": "no name", "strict": True}, 3, "look", {"type": "function"}])
def test_what_is_no_tool_is_refused_in_one_sentence(model: ChatTOPSLlava, given: Any) -> None:
    with pytest.raises(InvalidInput) as error:
        model.bind_tools([given])
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)

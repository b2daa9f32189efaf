"""The visual budget as a middleware of real agent loops on mini."""

import itertools
import sys
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import langchain_tops
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langchain_tops import ChatTOPSLlava, VisualBudget, VisualBudgetMiddleware, image_block
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from tests.conftest import Picture
from tests.integrations.langchain_tops.agents import ForcedCalls
from tops_engine.errors import InvalidInput, MissingDependency


@pytest.fixture
def model() -> ChatTOPSLlava:
    return ChatTOPSLlava(model="mini", device="cpu", keep=0.5, max_tokens=64)


@pytest.fixture
def look(picture: Picture) -> BaseTool:
    """Returns another picture each time."""
    seeds: Iterator[int] = itertools.count()

    @tool
    def look() -> list[Any]:
        """Look again."""
        return [image_block(picture(seed=next(seeds)))]

    return look


def reports(messages: list[Any]) -> list[dict[str, Any]]:
    return [message.response_metadata["visual_budget"] for message in messages if isinstance(message, AIMessage)]


def test_an_agent_stays_within_the_budget_at_each_step(model: ChatTOPSLlava, look: BaseTool) -> None:
    middleware = [ForcedCalls(5), VisualBudgetMiddleware(160)]
    agent: Any = create_agent(model, [look], middleware=middleware)
    messages = agent.invoke({"messages": [HumanMessage("What number is written?")]})["messages"]
    told = reports(messages)
    assert [report["before"] for report in told] == [0, 72, 144, 216, 288, 360]
    assert [report["after"] for report in told] == [0, 72, 144, 159, 159, 159]
    answers = [message for message in messages if isinstance(message, AIMessage)]
    read = [answer.response_metadata["usage"]["layer_average"] for answer in answers]
    assert read == pytest.approx([report["after"] for report in told], abs=1.5)
    # The history keeps every picture in full.
    blocks: list[Any] = [message.content[0] for message in messages if isinstance(message, ToolMessage)]
    assert [block["type"] for block in blocks] == ["image"] * 5
    assert all("extras" not in block for block in blocks)


def test_an_agent_with_a_cascade_stays_within_the_budget_in_each_reading(model: ChatTOPSLlava, look: BaseTool) -> None:
    cascade = model.model_copy(update={"keep": (0.222, 1.0), "confident": 1.0})
    agent: Any = create_agent(cascade, [look], middleware=[ForcedCalls(2), VisualBudgetMiddleware(160)])
    messages = agent.invoke({"messages": [HumanMessage("What number is written?")]})["messages"]
    assert [report["after"] for report in reports(messages)] == [0, 144, 160]
    usage = messages[-1].response_metadata["usage"]
    assert usage["cascade"]["answered_by"] == 2
    assert [step["layer_average"] for step in usage["cascade"]["steps"]] == pytest.approx([16 + 32, 160], abs=1)


async def test_asynchronous_agents_and_streams_do_the_same(model: ChatTOPSLlava, look: BaseTool) -> None:
    middleware = [ForcedCalls(3), VisualBudgetMiddleware(100)]
    agent: Any = create_agent(model, [look], middleware=middleware)
    state: Any = None
    async for mode, part in agent.astream({"messages": [HumanMessage("What?")]}, stream_mode=["values", "messages"]):
        state = part if mode == "values" else state
    assert [report["after"] for report in reports(state["messages"])] == [0, 72, 100, 100]


def test_errors_of_the_budget_reach_the_caller(model: ChatTOPSLlava, look: BaseTool) -> None:
    agent: Any = create_agent(model, [look], middleware=[VisualBudgetMiddleware(9000)])
    with pytest.raises(InvalidInput, match="more than the context of the model"):
        agent.invoke({"messages": [HumanMessage("What?")]})


def test_a_plain_graph_uses_the_budget_itself(model: ChatTOPSLlava, look: BaseTool) -> None:
    class State(TypedDict):
        messages: Annotated[list[Any], add_messages]

    budget = VisualBudget(100)

    def ask(state: State) -> dict[str, Any]:
        fitted = budget.fit(state["messages"], model)
        answer = model.invoke(fitted.messages)
        answer.response_metadata["visual_budget"] = fitted.report
        return {"messages": [answer, HumanMessage([*look.invoke({}), {"type": "text", "text": "And now?"}])]}

    graph: Any = StateGraph(State).add_node("ask", ask).add_edge(START, "ask")
    graph = graph.add_conditional_edges("ask", lambda state: "ask" if len(state["messages"]) < 9 else END).compile()
    told = reports(graph.invoke({"messages": [HumanMessage("What?")]})["messages"])
    assert [report["before"] for report in told] == [0, 72, 144, 216]
    assert [report["after"] for report in told] == [0, 72, 100, 100]


def test_summaries_begin_by_the_models_own_count_of_pictures(model: ChatTOPSLlava, look: BaseTool) -> None:
    count: Any = model.get_num_tokens_from_messages
    talk = [HumanMessage([*look.invoke({}), {"type": "text", "text": "One?"}]), AIMessage("Yes."), HumanMessage("Two?")]
    limit = count(talk)
    for trigger, is_summary in ((limit, True), (limit + 1, False)):
        summarize = SummarizationMiddleware(
            model, trigger=("tokens", trigger), keep=("messages", 1), token_counter=count
        )
        state: Any = {"messages": [message.model_copy() for message in talk]}
        runtime: Any = None
        assert (summarize.before_model(state, runtime) is not None) == is_summary


def test_the_chat_model_needs_no_langchain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "langchain" or name.startswith("langchain.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "langchain_tops.middleware", raising=False)
    with pytest.raises(MissingDependency, match=r"pip install 'langchain>=1\.4'; VisualBudget works without it"):
        _ = langchain_tops.VisualBudgetMiddleware
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        getattr(langchain_tops, "Nothing")  # noqa: B009

"""Look cheaply first, and closer where two cheap looks disagree: a LangGraph.

python docs/examples/langchain/cascade.py photo.jpg "What number is written?" "Which word is written?"

Two budgets keep different visual tokens. If both lead to the same answer, it is taken; otherwise the picture is read
with all tokens. The engine keeps the encoded picture, so the later looks do not encode it again. Choose the budgets
for a model of your own with ``tops tune``.
"""

import argparse
from collections.abc import Sequence
from typing import Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage
from langchain_tops import ChatTOPSLlava
from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    """What is asked, and the answers so far."""

    picture: str
    question: str
    looks: list[AIMessage]
    answer: AIMessage


def cascade(model: ChatTOPSLlava, budgets: Sequence[float]) -> Any:
    """Return a graph that asks with each of the budgets, and with all tokens if the answers differ."""

    def ask(state: State, keep: float) -> AIMessage:
        picture, question = {"type": "image", "url": state["picture"]}, {"type": "text", "text": state["question"]}
        return model.invoke([HumanMessage([picture, question])], keep=keep)

    def glance(state: State) -> State:
        looks = [ask(state, keep) for keep in budgets]
        return {"looks": looks, "answer": looks[-1]}

    def look_closer(state: State) -> State:
        answer = ask(state, 1.0)
        return {"looks": [*state["looks"], answer], "answer": answer}

    def doubts(state: State) -> str:
        return END if len({look.text for look in state["looks"]}) == 1 else "look_closer"

    graph = StateGraph(State).add_node("glance", glance).add_node("look_closer", look_closer)
    return graph.add_edge(START, "glance").add_conditional_edges("glance", doubts).compile()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.111, 0.222], help="of the cheap looks")
    given = parser.parse_args(arguments)

    graph = cascade(ChatTOPSLlava(model=given.model), given.budgets)
    for question in given.questions:
        state = graph.invoke({"picture": given.picture, "question": question})
        tokens = sum(look.response_metadata["usage"]["layer_average"] for look in state["looks"])
        print(f"{question} {state['answer'].text} ({len(state['looks'])} looks, {tokens:.0f} visual tokens)")


if __name__ == "__main__":
    main()

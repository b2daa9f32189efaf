"""Measure how a visual budget changes answers about old and new pictures of a conversation, on the embedded model.

    python -m benchmarks.agent_pictures --conversations 40 --json benchmarks/results/agent_pictures.json

A conversation holds the screenshots of so many steps, each a test scene of its own. The questions are about what only
one of the scenes shows: in the newest, and in the oldest. The old picture is asked about once without a name and once
with its name in the question ("... in picture 1?" is what protects it; mini itself is asked without the name). Each
question is answered without a budget, and with one.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_tops import ChatTOPSLlava, VisualBudget, image_block

from tops_engine.mini.scenes import Question, Scene, generate, is_correct


def conversations(number: int, steps: int) -> Iterator[list[Scene]]:
    """Yield scenes of which the first and the last have a question that no other scene could answer."""
    seed = 50_000
    while number:
        scenes = [generate(seed + step, "test") for step in range(steps)]
        seed += steps
        if own_question(scenes, 0) and own_question(scenes, steps - 1):
            number -= 1
            yield scenes


def own_question(scenes: Sequence[Scene], index: int) -> Question | None:
    """Return a question about a scene that is not asked about the others, for example of a shape that they lack."""
    others = {question.text for number, scene in enumerate(scenes) if number != index for question in scene.questions}
    return next((question for question in scenes[index].questions if question.text not in others), None)


def history(scenes: Sequence[Scene], question: str) -> list[BaseMessage]:
    """Return an agent's conversation with one scene a step, and a question at its end."""
    messages: list[BaseMessage] = [HumanMessage("Look around.")]
    for number, scene in enumerate(scenes):
        call = {"name": "look", "args": {}, "id": f"call-{number}"}
        messages += [AIMessage("", tool_calls=[call]), ToolMessage([image_block(scene.image)], tool_call_id=call["id"])]
    return [*messages, HumanMessage(question)]


def measure(model: ChatTOPSLlava, number: int, steps: int, max_tokens: int) -> dict[str, Any]:
    """Return the share of right answers and the mean visual tokens of each kind of question."""
    budget = VisualBudget(max_tokens)
    results: dict[str, list[tuple[bool, float]]] = {}
    for scenes in conversations(number, steps):
        for age, index in (("new", steps - 1), ("old", 0)):
            question = own_question(scenes, index)
            assert question is not None
            plain = history(scenes, question.text)
            named = history(scenes, f"{question.text} (picture {index + 1})")
            fitted = budget.fit(named, model).messages[:-1]
            sent = {
                f"{age}, without budget": plain,
                f"{age}, with budget": budget.fit(plain, model).messages,
                **({f"{age}, with budget, named": [*fitted, plain[-1]]} if age == "old" else {}),
            }
            for kind, messages in sent.items():
                answer = model.invoke(messages)
                tokens = answer.response_metadata["usage"]["layer_average"]
                results.setdefault(kind, []).append((is_correct(question, answer.text), tokens))
    return {
        kind: {"right": sum(right for right, _ in pairs), "asked": len(pairs), "visual_tokens": _mean(pairs)}
        for kind, pairs in results.items()
    }


def _mean(pairs: Sequence[tuple[bool, float]]) -> float:
    return round(sum(tokens for _, tokens in pairs) / len(pairs), 1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=40)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--max-visual-tokens", type=int, default=150)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)

    model = ChatTOPSLlava(model="mini", device="cpu", keep=given.keep, max_tokens=12)
    results = measure(model, given.conversations, given.steps, given.max_visual_tokens)
    settings = {"steps": given.steps, "keep": given.keep, "max_visual_tokens": given.max_visual_tokens}
    text = json.dumps(settings | {"results": results}, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

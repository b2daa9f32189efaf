"""Running prompts: order, lists, what is kept, errors, interruption."""

import threading
from pathlib import Path
from typing import Any

import pytest
from tops_workflow.formats import InvalidWorkflow, Prompt
from tops_workflow.host import Folders, Interrupted
from tops_workflow.node_calls import NodeFailed
from tops_workflow.runner import WorkflowRunner

from tests.integrations.tops_workflow.toy_nodes import TOYS, Choosy, Number


@pytest.fixture
def runner(tmp_path: Path) -> WorkflowRunner:
    Number.runs = Choosy.runs = Choosy.state = 0
    return WorkflowRunner(TOYS, Folders.under(tmp_path))


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def texts(runner: WorkflowRunner, prompt: Prompt, **options: Any) -> dict[str, list[Any]]:
    return {node_id: shown["text"] for node_id, shown in runner.run(prompt, **options).ui.items()}


def test_nodes_run_after_what_they_need_whatever_the_order_of_the_file(runner: WorkflowRunner) -> None:
    prompt = {
        "9": node("Show", value=["5", 0]),
        "5": node("Add", a=2, b=["1", 0]),
        "1": node("Number", value=3, seed=0),
        "7": node("Number", value=9, seed=1),
    }
    assert texts(runner, prompt) == {"9": ["5"]}
    assert Number.runs == 1, "nothing asks for node 7"


def test_a_list_runs_what_follows_once_for_each_element_and_shorter_ones_repeat_their_last(
    runner: WorkflowRunner,
) -> None:
    prompt = {
        "1": node("Many", count=3),
        "2": node("Many", count=2),
        "3": node("Add", a=["1", 0], b=["2", 0]),
        "4": node("Show", value=["3", 0], note=["1", 1]),
        "5": node("Show", value=["6", 0]),
        "6": node("Collect", values=["3", 0], mark="+"),
        "7": node("Many", count=0),
        "8": node("Show", value=["7", 0]),
    }
    assert texts(runner, prompt) == {"4": ["one0", "one2", "one3"], "5": ["0+2+3"]}


def test_equal_nodes_run_once_between_prompts_and_changes_run_only_what_depends_on_them(
    runner: WorkflowRunner,
) -> None:
    prompt = {
        "1": node("Number", value=3, seed=0),
        "2": node("Choosy", choice="a", other="x"),
        "3": node("Show", value=["1", 0]),
        "4": node("Show", value=["2", 0]),
    }
    runner.run(prompt)
    report = runner.run(prompt)
    assert report.cached == ["1", "3", "2", "4"]
    assert report.ui["3"] == {"text": ["3"]}, "what was kept is shown again"
    assert (Number.runs, Choosy.runs) == (1, 1)
    prompt["1"]["inputs"]["seed"] = 1
    assert runner.run(prompt).cached == ["2", "4"]
    assert (Number.runs, Choosy.runs) == (2, 1)


def test_true_and_one_are_different_values(runner: WorkflowRunner) -> None:
    first = {"1": node("Show", value=True)}
    second = {"1": node("Show", value=1)}
    assert texts(runner, first) == {"1": ["True"]}
    assert texts(runner, second) == {"1": ["1"]}


@pytest.mark.parametrize(("state", "runs"), [(7, 1), (float("nan"), 2), (ValueError("no"), 2)])
def test_a_node_that_says_it_changed_runs_again(runner: WorkflowRunner, state: Any, runs: int) -> None:
    prompt = {"1": node("Choosy", choice="a", other="x"), "2": node("Show", value=["1", 0])}
    Choosy.state = state
    runner.run(prompt)
    runner.run(prompt)
    assert Choosy.runs == runs


def test_results_of_the_last_prompt_are_kept_and_no_others(runner: WorkflowRunner) -> None:
    first = {"1": node("Number", value=1, seed=0), "2": node("Show", value=["1", 0])}
    second = {"1": node("Number", value=2, seed=0), "2": node("Show", value=["1", 0])}
    for prompt in (first, second, first):
        assert runner.run(prompt).cached == []
    runner.forget()
    assert runner.run(first).cached == []


def test_hidden_inputs_and_the_life_of_an_instance(runner: WorkflowRunner) -> None:
    def prompt(value: int) -> Prompt:
        return {
            "4:2": node("Own", value=value),
            "5": node("Own", value=value),
            "6": node("Show", value=["4:2", 0]),
            "7": node("Show", value=["5", 0]),
        }

    assert texts(runner, prompt(1), extra_pnginfo={"workflow": {}}) == {
        "6": ["4:2 4 ['workflow'] call 1"],
        "7": ["5 4 ['workflow'] call 1"],
    }
    assert texts(runner, prompt(2))["6"] == ["4:2 4 [] call 2"]


def test_a_failing_node_is_named_and_what_ran_before_is_kept(runner: WorkflowRunner) -> None:
    prompt = {
        "1": node("Number", value=3, seed=0),
        "2": node("Break", value=["1", 0]),
        "3": node("Show", value=["2", 0]),
    }
    with pytest.raises(NodeFailed, match=r"Break \(node 2\): cannot take 3") as failed:
        runner.run(prompt)
    assert (failed.value.node_id, failed.value.class_type, failed.value.inputs) == ("2", "Break", {"value": ["3"]})
    assert isinstance(failed.value.error, ValueError)
    assert "cannot take 3" in failed.value.trace[-1]
    prompt["2"] = node("Add", a=1, b=["1", 0])
    assert texts(runner, prompt) == {"3": ["4"]}
    assert Number.runs == 1


def test_an_interruption_stops_before_the_next_node_and_the_next_run_goes_on(runner: WorkflowRunner) -> None:
    prompt = {
        "1": node("Number", value=3, seed=0),
        "2": node("Add", a=1, b=["1", 0]),
        "3": node("Show", value=["2", 0]),
    }
    events: list[tuple[str, Any]] = []
    interrupted = threading.Event()

    def stop_at_first(kind: str, data: dict[str, Any]) -> None:
        events.append((kind, data.get("node")))
        if kind == "executing":
            interrupted.set()

    with pytest.raises(Interrupted):
        runner.run(prompt, listener=stop_at_first, interrupted=interrupted)
    assert events == [("execution_cached", None), ("executing", "1")]
    assert runner.run(prompt).cached == ["1"]


def test_a_chain_of_thousands_of_nodes_and_one_that_doubles_at_each_step(runner: WorkflowRunner) -> None:
    """Neither the depth of a graph nor the number of ways through it is a limit."""
    for step in ("value", "doubled"):
        chain = {"0": node("Number", value=1, seed=0)}
        count = 3000 if step == "value" else 60
        for number in range(1, count):
            source = [str(number - 1), 0]
            chain[str(number)] = node("Add", a=0 if step == "value" else source, b=source)
        chain["last"] = node("Show", value=[str(count - 1), 0])
        assert texts(runner, chain) == {"last": ["1" if step == "value" else str(2**59)]}


def test_only_wanted_outputs_run(runner: WorkflowRunner) -> None:
    prompt = {
        "1": node("Number", value=3, seed=0),
        "2": node("Show", value=["1", 0]),
        "3": node("Show", value="other"),
    }
    assert texts(runner, prompt, targets=["3"]) == {"3": ["other"]}
    assert Number.runs == 0


def test_what_cannot_run_is_refused_with_every_fault(runner: WorkflowRunner) -> None:
    prompt = {
        "1": node("Number", value=30, seed="x"),
        "2": node("Show", value=["1", 0]),
    }
    with pytest.raises(InvalidWorkflow, match=r"(?s)node 1 \(Number\): Value 30 bigger.*node 1 .*Failed to convert"):
        runner.run(prompt)


def test_one_sound_output_is_enough(runner: WorkflowRunner) -> None:
    prompt = {
        "1": node("Number", value=30, seed=0),
        "2": node("Show", value=["1", 0]),
        "3": node("Show", value="fine"),
    }
    assert texts(runner, prompt) == {"3": ["fine"]}

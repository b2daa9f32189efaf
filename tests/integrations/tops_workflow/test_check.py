"""The faults of a prompt, in ComfyUI's shape."""

import json
from typing import Any

import pytest
from tops_workflow.check import check_prompt
from tops_workflow.faults import Checked

from tests.integrations.tops_workflow.test_runner import node
from tests.integrations.tops_workflow.toy_nodes import TOYS


def check(**nodes: Any) -> Checked:
    return check_prompt({"9": node("Show", value=["1", 0]), **{name[1:]: value for name, value in nodes.items()}}, TOYS)


@pytest.mark.parametrize(
    ("faulty", "kind", "text"),
    [
        (node("Number", seed=0), "required_input_missing", "value"),
        (node("Number", value=-1, seed=0), "value_smaller_than_min", "Value -1 smaller than min of 0"),
        (node("Number", value=11, seed=0), "value_bigger_than_max", "Value 11 bigger than max of 10"),
        (node("Number", value=10**400, seed=0), "value_bigger_than_max", "bigger than max of 10"),
        (node("Number", value="many", seed=0), "invalid_input_type", "many"),
        (node("Number", value=[1, 2, 3], seed=0), "invalid_input_type", "INT"),
        (node("Number", value=float("inf"), seed=0), "invalid_input_type", "INT"),
        (node("Choosy", choice="bad", other="x"), "custom_validation_failed", "bad is not allowed"),
        (node("Choosy", choice="a", other="z"), "value_not_in_list", "'z' not in ['x', 'y']"),
        (node("Add", a=1, b=["7", 0]), "bad_linked_input", "node 7"),
        (node("Add", a=1, b=["9", 0]), "bad_linked_input", "no output 0"),
        (node("Add", a=1, b=["2", 1]), "return_type_mismatch", "received_type(STRING) mismatch input_type(INT)"),
    ],
)
def test_each_fault_has_comfyuis_type_and_says_what_is_wrong(faulty: Any, kind: str, text: str) -> None:
    checked = check(n1=faulty, n2=node("Many", count=1))
    (fault,) = checked.nodes["1"].faults
    assert fault.kind == kind
    assert text in str(fault)
    assert checked.nodes["1"].dependent_outputs == ["9"]
    assert checked.fault is not None
    assert checked.fault.kind == "prompt_outputs_failed_validation"
    assert checked.outputs == []
    written = json.loads(json.dumps(checked.errors_as_json()))["1"]
    assert written["class_type"] == faulty["class_type"]
    assert written["errors"][0]["type"] == kind


def test_values_are_converted_as_comfyui_does() -> None:
    prompt = {"9": node("Show", value=["1", 0]), "1": node("Number", value="7", seed=2.0)}
    assert check_prompt(prompt, TOYS).fault is None
    assert prompt["1"]["inputs"] == {"value": 7, "seed": 2}


def test_an_input_judged_by_the_node_may_be_outside_its_list() -> None:
    assert check(n1=node("Choosy", choice="c", other="x")).fault is None


def test_missing_classes_are_all_named() -> None:
    checked = check(n1=node("KSampler"), n2=node("VAEDecode"))
    assert checked.fault is not None
    assert checked.fault.kind == "missing_node_type"
    assert "#1 KSampler, #2 VAEDecode" in checked.fault.message
    assert checked.fault.extra_info == {"node_id": "1", "class_type": "KSampler", "node_title": "KSampler"}


def test_a_prompt_without_outputs() -> None:
    fault = check_prompt({"1": node("Number", value=1, seed=0)}, TOYS).fault
    assert fault is not None
    assert fault.kind == "prompt_no_outputs"


def test_a_circle_is_a_fault_and_not_a_recursion() -> None:
    checked = check(n1=node("Add", a=1, b=["2", 0]), n2=node("Add", a=["1", 0], b=1))
    kinds = {fault.kind for entry in checked.nodes.values() for fault in entry.faults}
    assert kinds == {"dependency_cycle"}
    assert any("1 → 2 → 1" in line for line in checked.lines())


def test_one_faulty_node_stops_only_the_outputs_that_need_it() -> None:
    checked = check_prompt(
        {
            "1": node("Number", value=99, seed=0),
            "2": node("Show", value=["1", 0]),
            "3": node("Show", value=["1", 0]),
            "4": node("Show", value="free"),
        },
        TOYS,
    )
    assert checked.fault is None
    assert checked.outputs == ["4"]
    assert checked.nodes["1"].dependent_outputs == ["2", "3"]


def test_inputs_nobody_knows_are_let_through() -> None:
    assert check(n1=node("Number", value=1, seed=0, later="new")).fault is None

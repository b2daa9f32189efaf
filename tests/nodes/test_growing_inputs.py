"""More pictures of one question, on inputs that grow with their links."""

from typing import Any

import pytest
import torch
from tops_workflow.core_nodes import CORE_NODES
from tops_workflow.formats import InvalidWorkflow, Prompt
from tops_workflow.runner import WorkflowRunner

import nodes
from nodes.models import TopsModel
from nodes.v1 import MOST_INPUTS, v1_nodes
from tests.conftest import Picture
from tests.nodes.conftest import RecordingHost, node
from tops_engine.errors import InvalidImage

QUESTION = {"prompt": "What number is written?", "max_tokens": 4, "temperature": 0.0, "seed": 0}
SIZES = {"1": (60, 40), "2": (40, 90), "3": (30, 30)}


@pytest.fixture(scope="module", autouse=True)
def model() -> TopsModel:
    """Load the model once: nodes with equal settings share it while one of them holds it."""
    handle: TopsModel = node("TOPSLoadModel").load("mini", "auto", "cpu", "none", "sdpa")[0]
    return handle


@pytest.fixture
def runner(watching: RecordingHost, picture: Picture) -> WorkflowRunner:
    for number, size in SIZES.items():
        picture(*size).save(watching.folders.input / f"{number}.png")
    return WorkflowRunner(CORE_NODES | nodes.NODE_CLASS_MAPPINGS, watching.folders)


def prompt_with(kind: str, **inputs: Any) -> Prompt:
    pictures = {number: {"class_type": "LoadImage", "inputs": {"image": f"{number}.png"}} for number in SIZES}
    loader = {"model": "mini", "dtype": "auto", "device": "cpu", "quantization": "none", "attention": "sdpa"}
    return pictures | {
        "model": {"class_type": "TOPSLoadModel", "inputs": loader},
        "asks": {"class_type": kind, "inputs": {"model": ["model", 0], **QUESTION, **inputs}},
    }


def test_ask_reads_the_pictures_of_all_inputs_in_their_order(runner: WorkflowRunner) -> None:
    more = {"images.image_10": ["3", 0], "images.image_4": ["2", 0]}
    prompt = prompt_with("TOPSAsk", image=["1", 0], **more, keeps="1.0,0.5,0.25")
    report = runner.run(prompt)
    (answer,) = report.results["asks"].outputs[3][0].answers
    assert [picture.keep for picture in answer.usage.pictures] == [1.0, 0.5, 0.25]
    assert [visual.size for visual in answer.token_map.visuals] == [SIZES[number] for number in "123"]
    assert runner.run(prompt).cached == list(report.results)
    assert "asks" not in runner.run(prompt | {"3": prompt["2"]}).cached


@pytest.mark.parametrize(
    ("kind", "inputs", "count"),
    [
        ("TOPSAsk", {"prompt": ""}, 1),
        ("TOPSStructured", {"json_schema": '{"type": "object", "properties": {}}', "fields": "", "max_tokens": 32}, 2),
        ("TOPSCompare", {"methods": "random", "keep": "0.5", "repeats": 1}, 2),
    ],
)
def test_nodes_that_ask_one_question_about_pictures_have_the_group(
    runner: WorkflowRunner, kind: str, inputs: dict[str, Any], count: int
) -> None:
    own = {"image": ["1", 0]} if count == 2 else {}
    report = runner.run(prompt_with(kind, **inputs, **own, **{"images.image_4": ["2", 0]}))
    slot = nodes.NODE_CLASS_MAPPINGS[kind].RETURN_NAMES.index("stats")
    answer = report.results["asks"].outputs[slot][0].answers[0]
    assert len(answer.usage.pictures) == count


def test_a_wrong_link_to_such_an_input_is_refused_before_the_run(runner: WorkflowRunner) -> None:
    with pytest.raises(InvalidWorkflow, match=r"images\.image_4, received_type\(TOPS_MODEL\) mismatch"):
        runner.run(prompt_with("TOPSAsk", **{"images.image_4": ["model", 0]}))


def test_what_arrives_at_such_an_input_and_is_no_picture_is_named(model: TopsModel) -> None:
    with pytest.raises(InvalidImage, match="'image_4'"):
        node("TOPSAsk").ask(model, "What?", 4, 0.0, 0, images={"image_4": torch.rand(0, 4, 4, 3)})


def test_a_comfyui_without_such_groups_has_an_input_for_each_picture(model: TopsModel) -> None:
    replaced = v1_nodes(nodes.NODE_CLASS_MAPPINGS)
    ask = replaced["TOPSAsk"]
    own, flat = (list(one.INPUT_TYPES()["optional"]) for one in (nodes.NODE_CLASS_MAPPINGS["TOPSAsk"], ask))
    assert flat == [*own[:-1], *(f"images.image_{number}" for number in range(4, 4 + MOST_INPUTS))]
    assert ask.INPUT_TYPES()["optional"]["images.image_4"][0] == "IMAGE"
    assert replaced["TOPSUnload"] is nodes.NODE_CLASS_MAPPINGS["TOPSUnload"], "its input of any type is no group"
    assert replaced["TOPSLoadModel"] is nodes.NODE_CLASS_MAPPINGS["TOPSLoadModel"]
    # ComfyUI passes linked inputs on that the class does not list.
    pictures = {f"images.image_{number}": torch.rand(1, 30, 30, 3) for number in (4, 12)}
    done = getattr(ask(), ask.FUNCTION)(model=model, **QUESTION, **pictures)
    assert len(done["result"][3].answers[0].usage.pictures) == 2

"""Test the prompts library: presets in place of the prompt, and prompts that the user saved."""

import json
import logging

import pytest
import torch
from PIL import Image
from tops_workflow.samples import samples_folder

from nodes.models import TopsModel
from nodes.pictures import to_image
from tests.nodes.conftest import RecordingHost, node
from tops_engine.captioning.prompts import EXPANSIONS, PROMPTS
from tops_engine.errors import InvalidInput


@pytest.fixture(scope="module")
def model() -> TopsModel:
    handle: TopsModel = node("TOPSLoadModel").load("mini", "auto", "cpu", "none", "sdpa")[0]
    return handle


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    return to_image([Image.open(samples_folder() / "tops_photo.jpg")])


def asked(model: TopsModel, photo: torch.Tensor, preset: str, prompt: str) -> str:
    """Return the question that the model got."""
    history = node("TOPSAsk").ask(model, prompt, 2, 0.0, 0, image=photo, preset=preset)["result"][2]
    return "".join(part["text"] for part in history.messages[0]["content"] if part["type"] == "text")


def choices(name: str, group: str, widget: str) -> list[str]:
    found: list[str] = node(name).INPUT_TYPES()[group][widget][0]
    return found


def test_a_preset_takes_the_place_of_the_prompt(model: TopsModel, photo: torch.Tensor, watching: RecordingHost) -> None:
    assert asked(model, photo, "none", "What number?") == "What number?"
    assert asked(model, photo, "tags", "What number?") == PROMPTS["tags"]
    expanded = asked(model, photo, "expand for a video model", "a cat runs")
    assert expanded == EXPANSIONS["expand for a video model"].replace("{prompt}", "a cat runs")
    with pytest.raises(InvalidInput, match=r"works on your prompt.*empty"):
        asked(model, photo, "expand for a video model", " ")
    with pytest.raises(InvalidInput, match="no prompt 'gone'"):
        asked(model, photo, "gone", "Hi")


def test_saved_prompts_are_choices(model: TopsModel, photo: torch.Tensor, watching: RecordingHost) -> None:
    assert watching.folders.user is not None
    watching.folders.user.mkdir()
    saved = {
        "count": "Count the shapes.",
        "around": "Say it twice: {prompt}",
        "tags": "not this",
        "empty": " ",
        "no": 3,
    }
    (watching.folders.user / "tops_prompts.json").write_text(json.dumps(saved))
    assert choices("TOPSAsk", "optional", "preset")[-2:] == ["count", "around"]
    assert choices("TOPSCaptionBatch", "required", "style")[-2:] == ["count", "custom"]
    assert asked(model, photo, "count", "?") == "Count the shapes."
    assert asked(model, photo, "around", "what") == "Say it twice: what"
    assert asked(model, photo, "tags", "?") == PROMPTS["tags"]
    captions = node("TOPSCaptionBatch").caption([model], ["count"], [1], [4], [0.0], [0], images=[photo])["result"][0]
    assert captions[0]


def test_a_damaged_file_of_saved_prompts_hides_no_node(
    watching: RecordingHost, caplog: pytest.LogCaptureFixture
) -> None:
    assert watching.folders.user is not None
    watching.folders.user.mkdir()
    (watching.folders.user / "tops_prompts.json").write_text("[1, 2")
    with caplog.at_level(logging.WARNING):
        assert choices("TOPSAsk", "optional", "preset")[0] == "none"
    assert "cannot be read" in caplog.text

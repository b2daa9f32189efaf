"""What users give by mistake: each is answered, or refused in one sentence, and the next question is answered."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tops_workflow.core_nodes import CORE_NODES
from tops_workflow.formats import InvalidWorkflow, Prompt
from tops_workflow.runner import WorkflowRunner
from tops_workflow.samples import samples_folder
from torch import Tensor, nn

import nodes
import tops_engine.mini
from nodes.models import TopsModel
from nodes.pictures import to_image
from tests.nodes.conftest import RecordingHost, node
from tops_engine.errors import ContextLengthError, ModelNotFound

LOADER = {"dtype": "auto", "device": "cpu", "quantization": "none", "attention": "sdpa"}
QUESTION = {"prompt": "What number is written?", "max_tokens": 4, "temperature": 0.0, "seed": 0}


@pytest.fixture(scope="module")
def model() -> TopsModel:
    handle: TopsModel = node("TOPSLoadModel").load("mini", *LOADER.values())[0]
    return handle


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return to_image([Image.open(samples_folder() / "tops_photo.jpg")])


class Prompts:
    """Give a list of prompts."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_IS_LIST = "test", "give", ("STRING",), (True,)
    INPUT_TYPES: Any = staticmethod(dict)

    def give(self) -> tuple[list[str]]:
        return (["What number is written?", "What colour is the star?"],)


def answer(model: TopsModel, **changed: Any) -> str:
    text: str = node("TOPSAsk").ask(model, **QUESTION | changed)["result"][0]
    return text


def runner(watching: RecordingHost) -> WorkflowRunner:
    return WorkflowRunner(CORE_NODES | nodes.NODE_CLASS_MAPPINGS, watching.folders)


def asking(model: str, **inputs: Any) -> Prompt:
    return {
        "model": {"class_type": "TOPSLoadModel", "inputs": LOADER | {"model": model}},
        "asks": {"class_type": "TOPSAsk", "inputs": {"model": ["model", 0], **QUESTION, **inputs}},
    }


@pytest.mark.parametrize("letter", ["a", "😀"])
def test_a_prompt_of_10000_characters_is_refused_with_both_lengths(
    model: TopsModel, photo: Tensor, letter: str
) -> None:
    with pytest.raises(ContextLengthError, match=r"needs \d+ positions and the model has 4096; shorten the text"):
        answer(model, prompt=10_000 * letter, image=photo)
    assert answer(model, image=photo) == "5"


@pytest.mark.full
def test_a_prompt_of_10000_characters_that_fits_is_answered(model: TopsModel, photo: Tensor) -> None:
    assert isinstance(answer(model, prompt=2000 * "word ", image=photo), str)


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_a_seed_above_63_bits_samples(watching: RecordingHost, seed: int) -> None:
    prompt = asking("mini", seed=seed, temperature=0.01)
    assert runner(watching).run(prompt).ui["asks"]["text"]
    prompt["asks"]["inputs"]["seed"] = 2**65
    with pytest.raises(InvalidWorkflow, match="bigger than max"):
        runner(watching).run(prompt)


def test_a_workflow_of_a_newer_pack_names_what_is_not_here(watching: RecordingHost) -> None:
    newer = asking("mini", an_input_of_the_future=3, preset="of the future")
    with pytest.raises(InvalidWorkflow, match="preset: 'of the future' not in"):
        runner(watching).run(newer)
    newer["asks"]["inputs"]["preset"] = "none"
    assert runner(watching).run(newer).ui["asks"]["text"]
    newer["later"] = {"class_type": "TOPSFuture", "inputs": {}}
    with pytest.raises(InvalidWorkflow, match="TOPSFuture not found"):
        runner(watching).run(newer)


def test_a_model_that_was_deleted_between_runs_is_named(watching: RecordingHost) -> None:
    folder = watching.folders.models["TOPS"][0] / "mine"
    shutil.copytree(Path(tops_engine.mini.__file__).with_name("weights"), folder)
    prompt, runs = asking("TOPS/mine"), runner(watching)
    (loaded,) = runs.run(prompt).ui["asks"]["text"]
    (handle,) = runs.run(prompt).results["model"].outputs[0]
    shutil.rmtree(folder)
    prompt["asks"]["inputs"]["prompt"] = "What colour is the star?"
    with pytest.raises(InvalidWorkflow, match="There is no checkpoint 'mine' in models/TOPS; put it there"):
        runs.run(prompt)
    assert answer(handle) == loaded, "what is in memory goes on"
    handle.free()
    with pytest.raises(ModelNotFound, match=r"There is no folder '.*mine'"):
        answer(handle)


def test_transparent_parts_are_white_for_the_model(model: TopsModel, photo: Tensor) -> None:
    hidden = torch.cat([photo, (torch.arange(photo.shape[2]) % 2).expand(photo.shape[:3])[..., None]], dim=-1)
    white = torch.where(hidden[..., 3:] == 0, 1.0, photo)
    seen = [
        node("TOPSAsk").ask(model, **QUESTION, image=image)["result"][3].answers[0].token_map.visuals[0].convert("RGB")
        for image in (hidden, white)
    ]
    assert seen[0].tobytes() == seen[1].tobytes()


def test_a_batch_is_one_run_of_the_model(model: TopsModel, photo: Tensor) -> None:
    prefills: list[int] = []

    def count(_: nn.Module, arguments: Any) -> None:
        if arguments[0].shape[1] > 1:
            prefills.append(arguments[0].shape[0])

    batch = torch.cat([photo, photo.flip(1), photo.flip(2)])
    modules = dict(model.engine.family.model.named_modules())
    (first_layer,) = [module for name, module in modules.items() if name.endswith("language_model.layers.0")]
    with first_layer.register_forward_pre_hook(count):
        answer(model, image=batch)
        assert len(prefills) == 1, "one question about three pictures"
        prefills.clear()
        node("TOPSCaptionBatch").caption([model], ["caption"], [3], [4], [0.0], [0], images=[batch])
    assert len(prefills) == 1, "three questions at once"


def test_a_list_of_prompts_gives_a_list_of_answers_with_one_loaded_model(watching: RecordingHost) -> None:
    shutil.copy(samples_folder() / "tops_photo.jpg", watching.folders.input)
    prompt = asking("mini", prompt=["prompts", 0], image=["photo", 0])
    prompt["model"]["inputs"]["max_pixels"] = 987_654  # another copy than that of any other test
    prompt["prompts"] = {"class_type": "Prompts", "inputs": {}}
    prompt["photo"] = {"class_type": "LoadImage", "inputs": {"image": "tops_photo.jpg"}}
    classes = CORE_NODES | nodes.NODE_CLASS_MAPPINGS | {"Prompts": Prompts}
    told: list[str] = []
    report = WorkflowRunner(classes, watching.folders).run(
        prompt, listener=lambda kind, data: told.append(data["text"]) if kind == "text" else None
    )
    assert report.results["asks"].outputs[0] == ["5", "red"]
    assert report.ui["asks"]["text"] == ["5", "red"]
    assert sum("oading" in text for text in told) == 1, told

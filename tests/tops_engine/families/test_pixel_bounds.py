"""Test min_pixels and max_pixels: what reaches a processor that has such a setting, and what the others see."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.messages import HumanMessage
from langchain_tops import ChatTOPSLlava, image_block
from PIL import Image
from transformers import Idefics3ImageProcessorPil, Qwen2VLImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tests.conftest import Picture, Tops
from tests.support.checkpoints import save_llava_next
from tests.support.checkpoints_idefics3 import save_idefics3
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_qwen import save_qwen2_vl
from tests.support.checkpoints_video import save_onevision
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.families.prompt import Prompt
from tops_engine.settings import Generation, ModelSpec, Pruning

Prepare = Callable[..., Prompt]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"))


@pytest.fixture
def prepare(picture: Picture) -> Prepare:
    """Return a function that prepares a picture of 160 x 100 pixels for a checkpoint with some bounds."""

    def prepared(folder: Path, **bounds: int) -> Prompt:
        engine = Engine.load(ModelSpec(model=str(folder), device="cpu", **bounds))
        return engine.family.prepare(read_conversation([user_message("What?", picture(160, 100))]))

    return prepared


# A visual token of the small checkpoint is 28 x 28 pixels, and its own bounds are 4 and 64 tokens.
QWEN = [
    ({}, (6, 4)),
    ({"max_pixels": 12 * 28 * 28}, (4, 2)),
    ({"max_pixels": 15 * 28 * 28}, (4, 3)),
    ({"min_pixels": 40 * 28 * 28}, (8, 5)),
    ({"min_pixels": 100 * 28 * 28}, (13, 8)),
    ({"max_pixels": 1}, (1, 1)),
]


@pytest.mark.parametrize(("bounds", "tokens"), QWEN)
def test_the_bounds_are_those_of_qwens_processor(
    qwen: Path, prepare: Prepare, picture: Picture, bounds: dict[str, int], tokens: tuple[int, int]
) -> None:
    prompt = prepare(qwen, **bounds)
    columns, rows = tokens
    assert prompt.pixels["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    own = Qwen2VLImageProcessorPil.from_pretrained(qwen, **bounds)(picture(160, 100), return_tensors="pt")
    assert torch.equal(prompt.pixels["pixel_values"], own["pixel_values"])
    assert prompt.images[0].size == (160, 100)


# A tile of the small checkpoint is 56 x 56 pixels and has 4 tokens; there are at most 12 tiles and a thumbnail.
INTERNVL = [
    ({}, {}, 28),
    ({"max_pixels": 4 * 56 * 56}, {"max_patches": 4}, 12),
    ({"max_pixels": 5 * 56 * 56 - 1}, {"max_patches": 4}, 12),
    ({"max_pixels": 1}, {"max_patches": 1}, 4),
    ({"min_pixels": 10 * 56 * 56}, {"min_patches": 10}, 52),
    ({"min_pixels": 3000, "max_pixels": 3500}, {"min_patches": 1, "max_patches": 1}, 4),
]


@pytest.mark.parametrize(("bounds", "setting", "num_tokens"), INTERNVL)
def test_internvl_takes_as_many_tiles_as_the_bounds_allow(
    tmp_path: Path,
    prepare: Prepare,
    picture: Picture,
    bounds: dict[str, int],
    setting: dict[str, int],
    num_tokens: int,
) -> None:
    folder = save_internvl(tmp_path)
    prompt = prepare(folder, **bounds)
    assert len(prompt.spans[0].positions) == num_tokens
    own = GotOcr2ImageProcessorPil.from_pretrained(folder, crop_to_patches=True, **setting)
    assert torch.equal(prompt.pixels["pixel_values"], own(picture(160, 100), return_tensors="pt")["pixel_values"])


def test_idefics3_takes_the_longest_side_that_the_bound_allows(
    tmp_path: Path, prepare: Prepare, picture: Picture
) -> None:
    folder = save_idefics3(tmp_path)
    own = Idefics3ImageProcessorPil.from_pretrained(folder)
    tile, longest = own.max_image_size["longest_edge"], own.size["longest_edge"]
    assert longest >= 3 * tile
    for most, side in [(4 * tile**2, 2 * tile), (9 * tile**2 - 1, 2 * tile), (1, tile), (10**8, longest)]:
        expected = own([[picture(160, 100)]], size={"longest_edge": side}, return_tensors="pt")["pixel_values"]
        prompt = prepare(folder, max_pixels=most)
        assert torch.equal(prompt.pixels["pixel_values"], expected)


@pytest.mark.parametrize("save", [save_llava_next, save_onevision])
def test_the_other_models_see_a_scaled_picture(
    tmp_path: Path, prepare: Prepare, picture: Picture, save: Callable[[Path], Path]
) -> None:
    folder = save(tmp_path)
    for bounds, size in [({"max_pixels": 4000}, (80, 50)), ({"min_pixels": 64000}, (320, 200))]:
        prompt = prepare(folder, **bounds)
        assert prompt.images[0].size == size
        scaled = picture(160, 100).resize(size, Image.Resampling.BICUBIC)
        engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))
        expected = engine.family.prepare(read_conversation([user_message("What?", scaled)]))
        assert torch.equal(prompt.pixels["pixel_values"], expected.pixels["pixel_values"])


def test_an_answer_and_a_count_have_the_same_bounds(qwen: Path, picture: Picture) -> None:
    engine = Engine.load(ModelSpec(model=str(qwen), device="cpu", max_pixels=12 * 28 * 28))
    messages = [user_message("What?", picture(160, 100), picture(30, 30))]
    answer = engine.chat(messages, Pruning(keep=1.0), Generation(max_tokens=1))
    assert answer.usage.visual_tokens == 8 + 4
    assert engine.count_tokens(messages) == answer.usage.prompt_tokens


def test_the_command_and_the_chat_model_have_the_options(
    tops: Tops, qwen: Path, tmp_path: Path, picture: Picture
) -> None:
    picture(160, 100).save(tmp_path / "photo.png")
    options: tuple[Any, ...] = ("--model", qwen, "--device", "cpu", "--max-tokens", 1, "--max-pixels", 12 * 28 * 28)
    result = tops("ask", tmp_path / "photo.png", "What?", "--json", *options)
    assert json.loads(result.out)["usage"]["visual_tokens"] == 8

    model = ChatTOPSLlava(model=str(qwen), device="cpu", max_tokens=1, max_pixels=12 * 28 * 28)
    question = HumanMessage([image_block(picture(160, 100)), {"type": "text", "text": "What?"}])
    assert model.invoke([question]).response_metadata["usage"]["visual_tokens"] == 8


def test_bounds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^min_pixels=9 is more than max_pixels=4; lower it\.$"):
        ModelSpec(min_pixels=9, max_pixels=4)
    with pytest.raises(InvalidInput, match="max_pixels=0 is not allowed"):
        ModelSpec(max_pixels=0)

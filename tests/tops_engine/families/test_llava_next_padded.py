"""Test LLaVA-NeXT without unpadding against features that are arranged token by token, and transformers' generate."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlavaNextImageProcessorPil

from tests.conftest import Picture
from tests.support.checkpoints import save_llava_next, small_tokenizer
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.families.llava_next_padded import PaddedProcessor
from tops_engine.settings import Generation, ModelSpec, Pruning

SIDE, NUM_TOKENS = 4, 12


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = save_llava_next(tmp_path_factory.mktemp("next"))
    return Engine.load(ModelSpec(model=str(folder), device="cpu", unpad=False))


def reference_embeds(family: Family, prompt: Prompt) -> Tensor:
    """Return the prompt's embeddings with each visual token written in its place, one after the other."""
    model = family.model.model
    (tiles,) = prompt.pixels["pixel_values"]
    states = model.vision_tower(tiles, output_hidden_states=True).hidden_states[-2][:, 1:]
    patches = model.multi_modal_projector(states)
    rows = [patches[0, number] for number in range(SIDE * SIDE)]
    for row in range(2 * SIDE):
        for column in range(2 * SIDE):
            tile = 1 + 2 * (row // SIDE) + column // SIDE
            rows.append(patches[tile, SIDE * (row % SIDE) + column % SIDE])
    embeds = model.language_model.embed_tokens(prompt.input_ids)
    embeds[prompt.input_ids == family.model.config.image_token_id] = torch.stack(rows)
    return embeds


@pytest.mark.parametrize("size", [(110, 70), (60, 250), (56, 56)])
def test_answers_are_those_of_generate_on_all_patches_in_raster_order(
    engine: Engine, picture: Picture, size: tuple[int, int]
) -> None:
    messages = [user_message("What is shown?", picture(*size))]
    family = engine.family
    with torch.inference_mode():
        embeds = reference_embeds(family, family.prepare(read_conversation(messages)))
        expected = family.model.generate(inputs_embeds=embeds[None], max_new_tokens=NUM_TOKENS, do_sample=False)
    answer = engine.chat(messages, Pruning(keep=1.0), Generation(max_tokens=NUM_TOKENS))
    assert answer.token_ids == expected[0].tolist()
    assert answer.usage.visual_tokens == SIDE * SIDE * 5


def test_published_sizes_have_2880_tokens(picture: Picture) -> None:
    sizes = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    image_processor = LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=[[672, 672]])
    processor = PaddedProcessor(
        image_processor,
        small_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    ids = processor(images=picture(640, 300), text="<image>")["input_ids"][0]
    assert list(ids).count(processor.image_token_id) == 2880


def test_pictures_of_all_shapes_have_as_many_tokens_and_a_place_for_each(engine: Engine, picture: Picture) -> None:
    for size in [(300, 40), (40, 300), (80, 80)]:
        prompt = engine.family.prepare(read_conversation([user_message("?", picture(*size))]))
        layout = prompt.spans[0].layout
        assert layout.num_tokens == 80
        assert layout.grids == ((4, 4), (8, 8))
        assert bool(layout.shows_picture.all())
        # The tiles' area has the picture in its middle and is as wide or as high as it.
        area = layout.boxes[16:]
        low, high = area[:, :2].amin(dim=0), area[:, 2:].amax(dim=0)
        torch.testing.assert_close(low + high, torch.ones(2), atol=0.02, rtol=0)
        assert float(low.max()) == pytest.approx(0, abs=0.02)
        assert float(low.min()) <= 0.0


def test_pruning_runs_and_meets_the_budget(engine: Engine, picture: Picture) -> None:
    answer = engine.chat([user_message("?", picture(110, 70))], Pruning(keep=20), Generation(max_tokens=2))
    assert answer.usage.layer_average == pytest.approx(20, abs=0.5)


def test_other_models_have_no_padding_to_cut_off(llava_folder: Path) -> None:
    with pytest.raises(UnsupportedModel, match="LLaVA-NeXT"):
        Engine.load(ModelSpec(model=str(llava_folder), device="cpu", unpad=False))

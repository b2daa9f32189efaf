"""Test Gemma 3: the pooled grid, its signals, the mask of pictures, and what is read again after a cached picture."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Picture
from tests.support.checkpoints_gemma import SIDE, save_gemma3
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.families.gemma3 import Gemma3Decoder
from tops_engine.settings import Generation, ModelSpec, Pruning


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gemma3(tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def eager(folder: Path) -> Family:
    return Engine.load(ModelSpec(model=str(folder), device="cpu", attention="eager")).family


def prepare(family: Family, *pictures: Any) -> Prompt:
    return family.prepare(read_conversation([user_message("What is this?", *pictures)]))


def picture_numbers(prompt: Prompt) -> Tensor:
    numbers = torch.full_like(prompt.input_ids, -1)
    for number, span in enumerate(prompt.spans):
        numbers[span.positions] = number
    return numbers


@pytest.mark.parametrize("layer", [0, 3, 4])
def test_attention_rows_are_the_eager_ones_with_pictures_seen_both_ways(
    eager: Family, picture: Picture, layer: int
) -> None:
    prompt = prepare(eager, picture(60, 50, 1), picture(40, 90, 2))
    with torch.inference_mode():
        output = eager.model(
            input_ids=prompt.input_ids[None], **prompt.pixels, output_attentions=True, output_hidden_states=True
        )
        hidden, decoder = output.hidden_states[layer], eager.decoder
        cos, sin = decoder.rope(hidden, prompt.position_ids, decoder.layer_types[layer])
        first, second = (span.positions for span in prompt.spans)
        asking = torch.cat([first[:3], second[:2], torch.tensor([len(prompt.input_ids) - 1])])
        rows = decoder.attention_rows(
            layer, hidden[0], (cos[0], sin[0]), asking, second, pictures=picture_numbers(prompt)
        )
    expected = output.attentions[layer][0].mean(dim=0)[asking][:, second]
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-4)
    assert rows[:3].max() == 0, "no token sees a later picture"
    assert rows[3, 1:].max() > 0, "a token sees the later tokens of its own picture"


def test_each_token_is_the_mean_of_the_patches_in_its_box(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompt = prepare(family, picture(90, 60))
    (layout,) = (span.layout for span in prompt.spans)
    assert layout.grids == ((SIDE, SIDE),)
    side = 2 * SIDE
    projector = family.model.model.multi_modal_projector
    with torch.inference_mode():
        for row, column in [(0, 0), (0, 5), (3, 6), (7, 2)]:
            patches = torch.zeros(1, side * side, family.model.config.vision_config.hidden_size)
            patches[0, row * side + column] = 1
            (token,) = projector(patches)[0].abs().sum(dim=1).nonzero().flatten().tolist()
            left, top, right, bottom = layout.boxes[token].tolist()
            assert left <= column / side < right
            assert top <= row / side < bottom


def test_signals_are_those_of_the_tower(eager: Family, picture: Picture) -> None:
    prompt = prepare(eager, picture(60, 50, 1))
    with torch.inference_mode():
        ((tokens,),) = eager.encode([prompt])
        tower = eager.model.model.vision_tower
        output = tower(prompt.pixels["pixel_values"], output_attentions=True, output_hidden_states=True)
        received = output.attentions[-1][0].mean(dim=(0, 1)).view(SIDE, 2, SIDE, 2).mean(dim=(1, 3))
        torch.testing.assert_close(tokens.vision_attention(), received.flatten(), atol=1e-6, rtol=1e-4)
        pooled = output.last_hidden_state[0].view(SIDE, 2, SIDE, 2, -1).mean(dim=(1, 3)).flatten(0, 1)
        torch.testing.assert_close(tokens.encoder_features(), pooled)
        torch.testing.assert_close(tokens.project(tokens.encoder_features()), tokens.features)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_question_about_a_known_picture_is_answered_as_if_it_were_new(
    folder: Path, picture: Picture, attention: Any
) -> None:
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu", attention=attention))
    first, second, pruning, generation = (
        picture(60, 50, 1),
        picture(40, 90, 2),
        Pruning(keep=0.5),
        Generation(max_tokens=8),
    )
    engine.chat([user_message("What is this?", first, second)], pruning, generation)
    for messages in (
        [user_message("Where was it taken?", first, second)],
        [user_message("Which is older?", first, picture(80, 80, 3))],
    ):
        again = engine.chat(messages, pruning, generation)
        assert again.usage.reused_tokens > 0
        engine.forget()
        assert engine.chat(messages, pruning, generation).token_ids == again.token_ids


def test_a_kernel_that_is_causal_only_is_refused(eager: Family) -> None:
    with eager.decoder.attending_by("flash_attention_2"), pytest.raises(UnsupportedModel, match="attention=sdpa"):
        Gemma3Decoder(eager.text_model, eager.model.lm_head)


def test_crops_are_refused(tmp_path: Path) -> None:
    folder = save_gemma3(tmp_path)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_pan_and_scan": True}))
    with pytest.raises(UnsupportedModel, match="do_pan_and_scan"):
        Engine.load(ModelSpec(model=str(folder), device="cpu"))

"""Test Mistral Small 3 and Ministral 3: rows of a picture, its signals, scaled queries, and the cost of a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints_mistral import LONGEST_EDGE, MERGE, PATCH_SIZE, save_mistral3
from tests.support.slow_reference import model_inputs_embeds
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.families.mistral3 import MistralDecoder
from tops_engine.settings import Generation, ModelSpec, Pruning

TOKEN = PATCH_SIZE * MERGE


def load(folder: Path, attention: Any = "eager") -> Engine:
    return Engine.load(ModelSpec(model=str(folder), device="cpu", attention=attention))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(save_mistral3(tmp_path_factory.mktemp("mistral")))


@pytest.fixture(scope="module")
def ministral(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(save_mistral3(tmp_path_factory.mktemp("ministral"), "ministral3")).family


def prepare(family: Family, *pictures: Any) -> Prompt:
    return family.prepare(read_conversation([user_message("What is this?", *pictures)]))


@pytest.mark.parametrize(
    ("size", "grid"),
    [((28, 28), (1, 1)), ((29, 28), (1, 2)), ((100, 70), (3, 4)), ((400, 90), (2, 7)), ((392, 784), (7, 4))],
)
def test_a_picture_is_rows_of_tokens_with_a_token_after_each(
    engine: Engine, picture: Picture, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    rows, columns = grid
    assert max(rows, columns) * TOKEN <= LONGEST_EDGE
    prompt = prepare(engine.family, picture(*size))
    (span,) = prompt.spans
    assert span.layout.grids == (grid,)
    names = engine.family.tokenizer.convert_ids_to_tokens(prompt.input_ids[span.positions[0] :])
    row = ["[IMG]"] * columns + ["[IMG_BREAK]"]
    assert names[: rows * (columns + 1)] == [*(row * rows)[:-1], "[IMG_END]"]


def test_a_picture_of_one_token_is_seen(engine: Engine, picture: Picture) -> None:
    question = [user_message("What is this?", picture(TOKEN, TOKEN), picture(3 * TOKEN, 2 * TOKEN, 1))]
    answer = engine.chat(question, Pruning(keep=1.0), Generation(max_tokens=2))
    assert answer.usage.visual_tokens == 7


def test_a_token_shows_the_pixels_in_its_box(engine: Engine, picture: Picture) -> None:
    family = engine.family
    first, second = prepare(family, picture(100, 70), picture(50, 120)).spans
    assert [len(span.layout.boxes) for span in (first, second)] == [12, 10]
    prompt = prepare(family, picture(100, 70))
    pixels = prompt.pixels["pixel_values"]
    rows, columns = prompt.spans[0].layout.grids[0]
    projector = family.model.model.multi_modal_projector
    sizes = prompt.pixels["image_sizes"]
    with torch.inference_mode():
        for row, column in [(0, 0), (3, 5), (5, 7)]:
            patches = torch.zeros(pixels.shape[-2] // PATCH_SIZE, pixels.shape[-1] // PATCH_SIZE, 32)
            patches[row, column] = 1
            merged = projector.patch_merger(patches.flatten(0, 1), sizes)
            (token,) = merged.abs().sum(dim=1).nonzero().flatten().tolist()
            left, top, right, bottom = prompt.spans[0].layout.boxes[token].tolist()
            assert left <= (column + 0.5) / (columns * MERGE) < right
            assert top <= (row + 0.5) / (rows * MERGE) < bottom


def test_features_and_signals_are_those_of_the_tower(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompt = prepare(family, picture(100, 70, 1), picture(50, 120, 2))
    embeds = model_inputs_embeds(family, prompt)[0]
    with torch.inference_mode():
        (encoded,) = family.encode([prompt])
        for index, (tokens, span) in enumerate(zip(encoded, prompt.spans, strict=True)):
            torch.testing.assert_close(tokens.features, embeds[span.positions], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(tokens.project(tokens.encoder_features()), tokens.features)
            size = prompt.pixels["image_sizes"][index : index + 1]
            height, width = size[0].tolist()
            output = family.model.model.vision_tower(
                prompt.pixels["pixel_values"][index : index + 1, :, :height, :width],
                image_sizes=size,
                output_attentions=True,
            )
            rows, columns = span.layout.grids[0]
            received = output.attentions[-1][0].mean(dim=(0, 1)).view(rows, MERGE, columns, MERGE).mean(dim=(1, 3))
            torch.testing.assert_close(tokens.vision_attention(), received.flatten(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 5])
def test_attention_rows_of_scaled_queries_are_the_eager_ones(ministral: Family, picture: Picture, layer: int) -> None:
    prompt, decoder = prepare(ministral, picture(100, 70, 1)), ministral.decoder
    with torch.inference_mode():
        output = ministral.model(
            input_ids=prompt.input_ids[None], **prompt.pixels, output_attentions=True, output_hidden_states=True
        )
        hidden = output.hidden_states[layer]
        rope = decoder.rope(hidden, prompt.position_ids, decoder.layer_types[layer])
        asking = torch.arange(len(prompt.input_ids))[-5:]
        visual = prompt.spans[0].positions
        rows = decoder.attention_rows(layer, hidden[0], tuple(part[0] for part in rope), asking, visual)
    expected = output.attentions[layer][0].mean(dim=0)[asking][:, visual]
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("pruning", [Pruning(method="none"), Pruning(method="random", keep=0.3)])
def test_flops_are_those_that_torch_counts(engine: Engine, picture: Picture, pruning: Pruning) -> None:
    engine.forget()
    pictures = [picture(100, 70, 1), picture(50, 120, 2)]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat([user_message("What?", *pictures)], pruning, Generation(max_tokens=3))
    assert answer.flops.total == counter.get_total_flops()


def test_scaled_queries_refuse_a_kernel_that_reads_positions(ministral: Family) -> None:
    with ministral.decoder.attending_by("flash_attention_2"), pytest.raises(UnsupportedModel, match="attention=sdpa"):
        MistralDecoder(ministral.text_model, ministral.model.lm_head)


def test_another_text_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_mistral3(tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["model_type"] = "llama"
    path.write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="'llama'; supported in this family are mistral, ministral3"):
        load(folder)


def test_a_question_with_the_tokens_of_pictures_is_text(engine: Engine, picture: Picture) -> None:
    question = "Is [IMG_BREAK] or [IMG_END] or [IMG] a token?"
    prompt = engine.family.prepare(read_conversation([user_message(question, picture(56, 28))]))
    names = engine.family.tokenizer.convert_ids_to_tokens(prompt.input_ids)
    assert [names.count(name) for name in ("[IMG]", "[IMG_BREAK]", "[IMG_END]")] == [2, 0, 1]

"""Test LLaVA-1.5 and LLaVA-NeXT: places of tokens, and signals of the vision tower and the decoder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import Picture
from tests.support.checkpoints import IMAGE_SIZE, NUM_PATCHES, PATCH_SIZE, save_llava, save_llava_next
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidImage
from tops_engine.families import Family
from tops_engine.families.parts.chat_templates import VICUNA_TEMPLATE
from tops_engine.families.parts.vision_signals import patch_attention
from tops_engine.settings import Generation, ModelSpec, Pruning

SIZES = [(56, 56), (80, 60), (60, 80), (200, 60), (60, 200), (112, 112), (333, 100), (57, 55)]


@pytest.fixture(params=["llava_engine", "llava_next_engine"])
def family(request: pytest.FixtureRequest) -> Family:
    engine: Engine = request.getfixturevalue(request.param)
    return engine.family


def gradient(size: tuple[int, int]) -> Image.Image:
    """Return a picture whose red grows from left to right and green from top to bottom."""
    width, height = size
    red = torch.linspace(0, 255, width).expand(height, width)
    green = torch.linspace(0, 255, height)[:, None].expand(height, width)
    pixels = torch.stack([red, green, torch.zeros(height, width)], dim=-1).round().byte()
    return Image.fromarray(pixels.numpy())


def patch_colours(family: Family, pixel_values: Tensor) -> Tensor:
    """Return the mean colour of each patch that the vision tower sees, 0 to 1: [tiles, patches, 3]."""
    processor = family.processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    pixels = pixel_values.reshape(-1, *pixel_values.shape[-3:]) * std + mean
    patches = torch.nn.functional.avg_pool2d(pixels, PATCH_SIZE)
    return patches.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_token_lies_where_its_pixels_come_from(family: Family, size: tuple[int, int]) -> None:
    prompt = family.prepare(read_conversation([user_message("?", gradient(size))]))
    layout = prompt.spans[0].layout
    colours = patch_colours(family, prompt.pixels["pixel_values"])
    shows = layout.boxes[:, 2] > layout.boxes[:, 0]
    # Padding is black: a patch that is a third padding has two thirds of the colour.
    inside = layout.boxes.clamp(0, 1)
    sides, full_sides = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (inside, layout.boxes))
    for channel in (0, 1):
        expected = inside[:, [channel, channel + 2]].mean(dim=1) * sides / full_sides
        (values,) = family.arrange(colours[..., channel, None], [prompt])
        assert (values[:, 0] - expected)[shows].abs().max() < 0.04


def test_a_newline_token_ends_each_row_of_tiles(llava_next_engine: Engine, picture: Picture) -> None:
    prompt = llava_next_engine.family.prepare(read_conversation([user_message("?", picture(110, 56))]))
    layout = prompt.spans[0].layout
    (rows, columns) = layout.grids[1]
    empty = (layout.boxes == 0).all(dim=1)
    newlines = empty.nonzero().flatten().tolist()
    assert newlines == [NUM_PATCHES + (row + 1) * (columns + 1) - 1 for row in range(rows)]
    assert layout.num_tokens == NUM_PATCHES + rows * (columns + 1)


def test_spans_are_the_placeholders_of_their_image(family: Family, picture: Picture) -> None:
    messages = [user_message("Compare.", picture(60, 60), picture(200, 60), picture(60, 90))]
    prompt = family.prepare(read_conversation(messages))
    placeholders = (prompt.input_ids == family.model.config.image_token_id).nonzero().flatten()
    assert torch.equal(torch.cat([span.positions for span in prompt.spans]), placeholders)
    features = family.project([prompt])
    assert [len(f) for f in features] == [span.layout.num_tokens for span in prompt.spans]


def test_features_are_those_of_transformers(family: Family, picture: Picture) -> None:
    """Encode pictures of different prompts, with different numbers of tiles, together and alone."""
    prompts = [
        family.prepare(read_conversation([user_message("?", picture(w, h, seed))]))
        for seed, (w, h) in enumerate([(200, 60), (56, 56), (60, 110)])
    ]
    with torch.inference_mode():
        together = family.project(prompts)
        for prompt, features in zip(prompts, together, strict=True):
            (alone,) = family.model.model.get_image_features(**prompt.pixels, return_dict=True).pooler_output
            torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-5)


def test_vision_attention_is_the_cls_row_of_the_layer_that_feeds_the_projector(
    tmp_path: Path, picture: Picture
) -> None:
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path)), device="cpu", attention="eager"))
    family = engine.family
    prompt = family.prepare(read_conversation([user_message("?", picture(70, 60))]))
    with torch.inference_mode():
        ((tokens,),) = family.encode([prompt])
        attentions = family.model.model.vision_tower(prompt.pixels["pixel_values"], output_attentions=True).attentions
    # vision_feature_layer is -2 of 5 hidden states, the output of layer 2.
    torch.testing.assert_close(tokens.vision_attention(), attentions[2][0, :, 0, 1:].mean(dim=0))


def test_without_cls_it_is_the_mean_attention_received() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 100, 12), torch.randn(2, 100, 12)
    received = patch_attention(queries, keys, num_heads=3, scale=0.5, has_cls=False)
    for tile in range(2):
        expected = torch.zeros(100)
        for head in range(3):
            q, k = (x[tile, :, 4 * head : 4 * head + 4] for x in (queries, keys))
            expected += (0.5 * q @ k.T).softmax(dim=1).mean(dim=0) / 3
        torch.testing.assert_close(received[tile], expected)


def test_newline_tokens_get_no_vision_attention(llava_next_engine: Engine, picture: Picture) -> None:
    family = llava_next_engine.family
    prompt = family.prepare(read_conversation([user_message("?", picture(110, 56))]))
    ((tokens,),) = family.encode([prompt])
    newline = (tokens.layout.boxes == 0).all(dim=1)
    assert (tokens.vision_attention()[newline] == 0).all()
    assert (tokens.vision_attention()[~newline] > 0).all()


def test_encoding_leaves_no_hooks_behind(family: Family, picture: Picture) -> None:
    modules: list[Any] = list(family.model.modules())

    def num_hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)

    prompt = family.prepare(read_conversation([user_message("?", picture())]))
    family.project([prompt])  # transformers installs its own at the first call
    before = num_hooks()
    family.encode([prompt])
    assert num_hooks() == before


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("layer", [0, 3, 7])
def test_attention_rows_are_the_eager_ones(tmp_path: Path, kind: str, layer: int) -> None:
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path, kind)), device="cpu", attention="eager"))
    decoder = engine.family.decoder
    torch.manual_seed(1)
    ids = torch.randint(10, 250, (1, 30))
    with torch.inference_mode():
        output = decoder.text_model(ids, output_attentions=True, output_hidden_states=True)
        hidden = output.hidden_states[layer]
        cos, sin = decoder.rope(hidden, torch.arange(30)[None], decoder.layer_types[layer])
        text, visual = torch.tensor([20, 22, 29]), torch.tensor([3, 4, 11, 21])
        rows = decoder.attention_rows(layer, hidden[0], (cos[0], sin[0]), text, visual)
        largest = decoder.attention_rows(layer, hidden[0], (cos[0], sin[0]), text, visual, heads="max")
    expected = output.attentions[layer][0][:, text][:, :, visual]
    torch.testing.assert_close(rows, expected.mean(dim=0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(largest, expected.amax(dim=0), atol=1e-6, rtol=1e-5)


def test_attention_rows_in_pieces_is_the_same(llava_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = llava_engine.family.decoder
    hidden = torch.randn(20, 64)
    cos, sin = decoder.rope(hidden[None], torch.arange(20)[None], decoder.layer_types[3])
    args = (3, hidden, (cos[0], sin[0]), torch.arange(10, 20), torch.arange(2, 9))
    whole = decoder.attention_rows(*args)
    monkeypatch.setattr("tops_engine.families.decoder.MAX_SCORES", 3 * 4 * 20)
    torch.testing.assert_close(decoder.attention_rows(*args), whole)


def test_a_checkpoint_without_chat_template_gets_vicunas(llava_engine: Engine, picture: Picture) -> None:
    family = llava_engine.family
    template, family.processor.chat_template = family.processor.chat_template, None
    try:
        prompt = family.prepare(
            read_conversation([{"role": "system", "content": "Be brief."}, user_message("What is it?", picture())])
        )
    finally:
        family.processor.chat_template = template
    text = family.tokenizer.decode(prompt.input_ids).replace("<image>" * NUM_PATCHES, "<image>")
    assert text.endswith("Be brief. USER: <image>\nWhat is it? ASSISTANT:")
    assert "<image>" in VICUNA_TEMPLATE


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 2)], ids=str)
def test_tiny_pictures_are_answered_and_threads_of_pixels_refused(
    llava_engine: Engine, llava_next_engine: Engine, picture: Picture, size: tuple[int, int]
) -> None:
    for engine in (llava_engine, llava_next_engine):
        messages = [user_message("?", picture(*size))]
        if engine is llava_next_engine and max(size) == 400:
            with pytest.raises(InvalidImage, match=f"{size[0]} x {size[1]}"):
                engine.chat(messages)
        else:
            answer = engine.chat(messages, Pruning(keep=0.5), Generation(max_tokens=2))
            assert answer.usage.layer_average == pytest.approx(0.5 * answer.usage.visual_tokens, abs=0.5)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)], ids=str)
def test_a_picture_that_would_become_enormous_before_the_crop_is_refused(
    llava_engine: Engine, size: tuple[int, int]
) -> None:
    with pytest.raises(InvalidImage, match=f"A picture of {size[0]} x {size[1]} pixels is too narrow .*; crop it"):
        llava_engine.chat([user_message("?", Image.new("RGB", size))])


def test_seen_area_follows_the_processor(llava_engine: Engine) -> None:
    image = Image.new("RGB", (200, 100))
    messages = read_conversation([user_message("?", image)])
    layout = llava_engine.family.prepare(messages).spans[0].layout
    left, top, _, _ = layout.boxes[0].tolist()
    _, _, right, bottom = layout.boxes[-1].tolist()
    assert (left, top, right, bottom) == pytest.approx((0.25, 0.0, 0.75, 1.0))
    assert layout.grids == ((IMAGE_SIZE // PATCH_SIZE, IMAGE_SIZE // PATCH_SIZE),)


def test_encoder_features_projected_are_the_visual_tokens(family: Family, picture: Picture) -> None:
    prompts = [family.prepare(read_conversation([user_message("?", picture(w, 60, w))])) for w in (200, 56)]
    with torch.inference_mode():
        for (tokens,), prompt in zip(family.encode(prompts), prompts, strict=True):
            patches = (prompt.spans[0].layout.boxes != 0).any(dim=1)
            features = tokens.encoder_features()
            assert (features[~patches] == 0).all()
            projected = family.model.model.multi_modal_projector(features[patches])
            torch.testing.assert_close(projected, tokens.features[patches], atol=1e-5, rtol=1e-5)


def test_llama3_prompts_begin_once_and_answers_end_with_either_of_its_tokens(tmp_path: Path, picture: Picture) -> None:
    folder = save_llava_next(tmp_path, "llama3")
    spec = ModelSpec(model=str(folder), device="cpu")
    messages = [{"role": "system", "content": "Be brief."}, user_message("What?", picture(56, 56))]
    family = Engine.load(spec).family
    prompt = family.prepare(read_conversation(messages))
    text = family.tokenizer.decode(prompt.input_ids).replace("<image>" * prompt.spans[0].layout.num_tokens, "<image>")
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    # Llama 3 ends a turn with one token and a text with another; the generation config names both.
    first = Engine.load(spec).chat(messages, Pruning(keep=0.5), Generation(max_tokens=3)).token_ids[1]
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [family.tokenizer.eos_token_id, first]}))
    answer = Engine.load(spec).chat(messages, Pruning(keep=0.5), Generation(max_tokens=3))
    assert answer.finish_reason == "stop"
    assert len(answer.token_ids) == 2

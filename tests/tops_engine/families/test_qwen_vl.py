"""Test Qwen2-VL, Qwen2.5-VL and Qwen3-VL: places of tokens, 3-D positions, signals of a packed vision tower.

``generation/test_exactness.py`` compares the answers with transformers'.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen2_vl, save_qwen3_vl, save_qwen3_vl_moe
from tests.support.slow_reference import greedy_tokens, model_text_inputs
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import ContextLengthError, InvalidImage, InvalidInput, UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.methods import METHODS, VisualTokens
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.supported_models import applies

SAVE = {"qwen2-vl": save_qwen2_vl, "qwen2.5-vl": save_qwen2_5_vl, "qwen3-vl": save_qwen3_vl}
SIZES = [(56, 56), (200, 130), (130, 200), (300, 90), (57, 200), (260, 260)]


@pytest.fixture(scope="module", params=SAVE, ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save: Callable[[Path], Path] = SAVE[request.param]
    return save(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(ModelSpec(model=str(save_qwen3_vl(tmp_path_factory.mktemp("qwen3"))), device="cpu"))


def prepare(family: Family, *pictures: Image.Image, text: str = "What is shown?") -> Prompt:
    return family.prepare(read_conversation([user_message(text, *pictures)]))


def encode(family: Family, *prompts: Prompt) -> list[VisualTokens]:
    """Encode the images of all prompts together."""
    with torch.inference_mode():
        return [image for images in family.encode(prompts) for image in images]


def gradient(size: tuple[int, int]) -> Image.Image:
    """Return a picture whose red grows from left to right and green from top to bottom."""
    width, height = size
    red = torch.linspace(0, 255, width).expand(height, width)
    green = torch.linspace(0, 255, height)[:, None].expand(height, width)
    pixels = torch.stack([red, green, torch.zeros(height, width)], dim=-1).round().byte()
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_token_lies_where_its_pixels_come_from(engine: Engine, size: tuple[int, int]) -> None:
    family = engine.family
    prompt = prepare(family, gradient(size))
    layout = prompt.spans[0].layout
    processor = family.processor.image_processor
    # Four patches a token, one after the other; a patch is channels x 2 equal frames x pixels.
    values = prompt.pixels["pixel_values"].view(layout.num_tokens, 4, 3, -1).mean(dim=(1, 3))
    colours = values * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)
    for channel in (0, 1):
        middles = layout.boxes[:, [channel, channel + 2]].mean(dim=1)
        assert (colours[:, channel] - middles).abs().max() < 0.02
    rows, columns = layout.grids[0]
    assert rows * columns == layout.num_tokens
    # The picture keeps its shape as nearly as whole tokens allow.
    assert rows / columns == pytest.approx(size[1] / size[0], abs=0.5 * max(rows, columns) / columns / min(rows, 2))


def test_token_counts_at_published_settings(tmp_path: Path) -> None:
    """Use the hub's limits, with one token for 28 x 28 pixels."""
    family = Engine.load(ModelSpec(model=str(save_qwen2_5_vl(tmp_path)), device="cpu")).family
    family.processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": 12845056}
    counts = {(640, 480): 391, (1920, 1080): 2691, (224, 224): 64}
    for size, count in counts.items():
        assert prepare(family, Image.new("RGB", size)).spans[0].layout.num_tokens == count


def test_spans_are_the_placeholders_of_their_picture(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompt = prepare(family, picture(60, 60), picture(300, 90), picture(130, 200))
    placeholders = (prompt.input_ids == family.model.config.image_token_id).nonzero().flatten()
    assert torch.equal(torch.cat([span.positions for span in prompt.spans]), placeholders)
    assert [len(features) for features in family.project([prompt])] == [s.layout.num_tokens for s in prompt.spans]


def test_positions_are_row_and_column_inside_a_picture_and_one_number_in_text(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompt = prepare(family, picture(300, 90), picture(90, 200))
    time, row, column = prompt.position_ids
    expected, here = torch.full((3, len(prompt.input_ids)), -1), 0
    first_of_span = {int(span.positions[0]): span for span in prompt.spans}
    place = 0
    while place < len(prompt.input_ids):
        if (span := first_of_span.get(place)) is None:
            expected[:, place] = here
            here, place = here + 1, place + 1
            continue
        rows, columns = span.layout.grids[0]
        for token in range(rows * columns):
            expected[:, place + token] = here + torch.tensor([0, token // columns, token % columns])
        here, place = here + max(rows, columns), place + rows * columns
    assert torch.equal(torch.stack([time, row, column]), expected)
    assert torch.equal(model_text_inputs(family, prompt).positions[:, 0], expected)


def test_text_alone_counts_on(engine: Engine) -> None:
    prompt = prepare(engine.family)
    assert torch.equal(prompt.position_ids, torch.arange(len(prompt.input_ids)).expand(3, -1))


def test_a_prompt_needs_as_many_positions_as_its_longest_side(folder: Path, picture: Picture) -> None:
    """Check that a picture of 8 x 8 tokens takes eight positions of the context, pruned or not."""
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))
    family = engine.family
    messages = [user_message("What is shown?", picture(400, 400))]
    prompt = family.prepare(read_conversation(messages))
    needed = int(prompt.position_ids.max()) + 1
    assert needed < len(prompt.input_ids)
    family.decoder.text_model.config.max_position_embeddings = needed + 3
    answer = engine.chat(messages, Pruning(keep=1.0), Generation(max_tokens=9))
    assert (answer.usage.completion_tokens, answer.finish_reason) == (3, "length")
    family.decoder.text_model.config.max_position_embeddings = needed
    with pytest.raises(ContextLengthError, match=f"needs {needed} positions"):
        engine.chat(messages, Pruning(keep=0.1))


@pytest.mark.parametrize("positions", ["contiguous", "original", None])
def test_answers_say_that_coordinates_are_kept(engine: Engine, picture: Picture, positions: Any) -> None:
    pruning = Pruning(keep=0.4, positions=positions)
    answer = engine.chat([user_message("What?", picture(200, 130))], pruning, Generation(max_tokens=1))
    assert answer.pruning["positions"] == "original"


def rotated(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = values.shape[-1] // 2
    return values * cos + torch.cat([-values[..., half:], values[..., :half]], dim=-1) * sin


def tower_order(family: Any, rows: int, columns: int) -> list[int]:
    """Return the tower's order of a picture's tokens: by windows of 4 x 4 in Qwen2.5-VL."""
    tokens = [(row, column) for row in range(rows) for column in range(columns)]
    side = 4 if hasattr(family.visual.config, "window_size") else max(rows, columns)
    ordered = sorted(tokens, key=lambda token: (token[0] // side, token[1] // side, token))
    return [row * columns + column for row, column in ordered]


def test_vision_attention_is_what_the_last_full_layer_pays_each_token(engine: Engine, picture: Picture) -> None:
    """Compare with the attention of one picture alone, written out; the engine encodes it among others."""
    family: Any = engine.family
    target = prepare(family, picture(300, 130, 1))
    caught: dict[str, Any] = {}
    layer = family.visual.blocks[-1].attn
    handle = layer.register_forward_pre_hook(
        lambda _, args, kwargs: caught.update(hidden=args[0], rope=kwargs["position_embeddings"]), with_kwargs=True
    )
    with torch.inference_mode():
        family.model.model.get_image_features(target.pixels["pixel_values"], target.pixels["image_grid_thw"])
        handle.remove()
        queries, keys, _ = layer.qkv(caught["hidden"]).chunk(3, dim=1)
        heads, width = [], queries.shape[1] // layer.num_heads
        for head in range(layer.num_heads):
            part = slice(head * width, (head + 1) * width)
            q, k = (rotated(x[:, part], *caught["rope"]) for x in (queries, keys))
            heads.append((q @ k.T / width**0.5).softmax(dim=1))
    received = torch.stack(heads).mean(dim=(0, 1)).view(-1, 4).mean(dim=1)
    order = tower_order(family, *target.spans[0].layout.grids[0])
    assert (order != sorted(order)) == hasattr(family.visual.config, "window_size")
    expected = torch.empty_like(received)
    expected[order] = received
    _, tokens, _ = encode(family, prepare(family, picture(90, 200, 2)), target, prepare(family, picture(60, 60, 3)))
    torch.testing.assert_close(tokens.vision_attention(), expected, atol=1e-6, rtol=1e-4)
    expected_keys = torch.empty(len(order), keys.shape[1])
    expected_keys[order] = keys.view(-1, 4, keys.shape[1]).mean(dim=1)
    torch.testing.assert_close(tokens.last_layer_keys(), expected_keys, atol=1e-5, rtol=1e-4)
    heads_of_keys = expected_keys.view(len(order), layer.num_heads, -1)
    torch.testing.assert_close(tokens.vision_keys(), heads_of_keys.mean(dim=1), atol=1e-5, rtol=1e-4)
    assert len(set(tokens.tiles().tolist())) == 1


def test_encoder_features_projected_are_the_visual_tokens(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompts = [prepare(family, picture(300, 130)), prepare(family), prepare(family, picture(60, 90), picture(200, 90))]
    images = encode(family, *prompts)
    alone = [tokens for prompt in prompts for tokens in encode(family, prompt)]
    with torch.inference_mode():
        for tokens, single in zip(images, alone, strict=True):
            projected = tokens.project(tokens.encoder_features())
            torch.testing.assert_close(projected, tokens.features, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(tokens.features, single.features, atol=1e-4, rtol=1e-4)


def test_deepstack_features_are_those_of_transformers(qwen3: Engine, picture: Picture) -> None:
    family = qwen3.family
    prompts = [prepare(family, picture(300, 130)), prepare(family, picture(60, 90), picture(200, 90))]
    images = encode(family, *prompts)
    expected = []
    with torch.inference_mode():
        for prompt in prompts:
            inputs = prompt.pixels["pixel_values"], prompt.pixels["image_grid_thw"]
            maps = family.model.model.get_image_features(*inputs, return_dict=True).deepstack_features
            counts = [span.layout.num_tokens for span in prompt.spans]
            # A map of all pictures in some versions of transformers, of each picture in others.
            whole = [rows if isinstance(rows, Tensor) else torch.cat(rows) for rows in maps]
            expected += list(zip(*(torch.split(rows, counts) for rows in whole), strict=True))
    assert len(images[0].deepstack) == 3
    for tokens, maps in zip(images, expected, strict=True):
        for ours, theirs in zip(tokens.deepstack, maps, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_deepstack_features_follow_tokens_kept_in_the_layers_that_add_them(qwen3: Engine, picture: Picture) -> None:
    pruning = Pruning(schedule="0:20,1:14,2:9,3:6,5:3", positions="original")
    messages = [user_message("Compare.", picture(200, 130, 1), picture(130, 230, 2))]
    answer = qwen3.chat(messages, pruning, Generation(max_tokens=8))
    assert [stage.visual_tokens for stage in answer.usage.stages] == [[20, 20], [14, 14], [9, 9], [6, 6], [3, 3]]
    assert answer.token_ids == greedy_tokens(qwen3.family, messages, answer, "original", len(answer.token_ids))


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"resize"}))
def test_every_method_runs_or_says_that_it_needs_clip(engine: Engine, picture: Picture, method: str) -> None:
    messages = [user_message("Compare.", picture(260, 200, 1), picture(130, 230, 2))]
    pruning = Pruning(method=method, keep=0.6)
    if not applies(METHODS[method], type(engine.family)):
        with pytest.raises(UnsupportedModel, match="CLIP"):
            engine.chat(messages, pruning)
        return
    answer = engine.chat(messages, pruning, Generation(max_tokens=4))
    kept = 1.0 if method == "none" else 0.6
    assert answer.usage.layer_average == pytest.approx(kept * answer.usage.visual_tokens, abs=2)


@pytest.mark.parametrize("layer", [0, 5])
def test_attention_rows_are_the_eager_ones_at_positions_in_3d(folder: Path, picture: Picture, layer: int) -> None:
    family = Engine.load(ModelSpec(model=str(folder), device="cpu", attention="eager")).family
    inputs = model_text_inputs(family, prepare(family, picture(200, 130)))
    text, visual = torch.tensor([-1, -4]) + inputs.embeds.shape[1], torch.arange(30, 50)
    with torch.inference_mode():
        output = family.text_model(
            inputs_embeds=inputs.embeds,
            position_ids=inputs.positions,
            output_attentions=True,
            output_hidden_states=True,
        )
        cos, sin = family.decoder.rope(inputs.embeds, inputs.positions, family.decoder.layer_types[layer])
        hidden = output.hidden_states[layer][0]
        rows = family.decoder.attention_rows(layer, hidden, (cos[0], sin[0]), text, visual)
    expected = output.attentions[layer][0].mean(dim=0)[text][:, visual]
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-4)


def test_the_papers_preset_for_28_layers(tmp_path: Path) -> None:
    """Use 1296 tokens, a grid of 36 x 36."""
    folder = save_qwen2_5_vl(tmp_path, num_hidden_layers=28)
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))
    engine.family.processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": 12845056}
    messages = [user_message("What is shown?", Image.effect_noise((1008, 1008), 90))]
    answer = engine.chat(messages, Pruning(schedule="qwen2.5-vl-7b/256"), Generation(max_tokens=1))
    assert answer.usage.visual_tokens == 1296
    assert [(stage.layer, stage.visual_tokens) for stage in answer.usage.stages] == [
        (0, [512]),
        (12, [281]),
        (16, [77]),
    ]
    assert answer.usage.layer_average == (12 * 512 + 4 * 281 + 12 * 77) / 28
    assert (answer.pruning["alpha"], answer.pruning["lambda"]) == (0.5, 0.4)


@pytest.mark.parametrize(
    "pruning", [Pruning(method="none"), Pruning(method="random", keep=0.3)], ids=["none", "random"]
)
def test_flops_are_those_torch_counts(engine: Engine, picture: Picture, pruning: Pruning) -> None:
    """Include windows of Qwen2.5-VL that are cut off at the right and the bottom."""
    messages = [user_message("Compare.", picture(300, 130, 1), picture(130, 230, 2))]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat(messages, pruning, Generation(max_tokens=3))
    assert answer.flops.total == counter.get_total_flops()
    assert answer.usage.completion_tokens > 1
    assert engine.chat([user_message("Hello")], pruning, Generation(max_tokens=1)).flops.vision == 0


@pytest.mark.parametrize("layers", [{}, {"mlp_only_layers": [0, 5], "decoder_sparse_step": 2}], ids=["all", "some"])
def test_flops_of_experts_are_those_torch_counts(tmp_path: Path, picture: Picture, layers: dict[str, Any]) -> None:
    engine = Engine.load(ModelSpec(model=str(save_qwen3_vl_moe(tmp_path, **layers)), device="cpu"))
    # The counter does not know the grouped products that run the experts otherwise.
    engine.family.model.set_experts_implementation("eager")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pruning = Pruning(method="random", keep=0.3)
        answer = engine.chat([user_message("What?", picture(130, 230, 2))], pruning, Generation(max_tokens=3))
    assert answer.flops.total == counter.get_total_flops()


@pytest.mark.parametrize("size", [(400, 1), (1, 400)], ids=str)
def test_threads_of_pixels_are_refused(engine: Engine, picture: Picture, size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match=f"refuses the pictures .*{size[0]} x {size[1]}"):
        engine.chat([user_message("?", picture(*size))])


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 150), (30, 2)], ids=str)
def test_tiny_pictures_are_answered(engine: Engine, picture: Picture, size: tuple[int, int]) -> None:
    answer = engine.chat([user_message("?", picture(*size))], Pruning(keep=0.5), Generation(max_tokens=2))
    assert answer.usage.visual_tokens >= 4


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>"])
def test_placeholders_in_the_text_stay_text(engine: Engine, picture: Picture, token: str) -> None:
    pruning, generation = Pruning(keep=0.5), Generation(max_tokens=4)
    answer = engine.chat([user_message(f"What is {token}?", picture())], pruning, generation)
    spelled = user_message(f"What is {token.replace('<', '< ')}?", picture())
    assert answer.text == engine.chat([spelled], pruning, generation).text


def test_the_token_map_shows_the_whole_picture(engine: Engine, picture: Picture) -> None:
    pruning = Pruning(method="random", keep=0.5)
    answer = engine.chat([user_message("?", picture(300, 130))], pruning, Generation(max_tokens=1))
    (rows, columns) = answer.token_map.layouts[0].grids[0]
    mask = answer.token_map.mask(0, 0)
    assert mask.size == (300, 130)
    kept = answer.token_map.stages[0][1][0].tolist()
    for token in range(rows * columns):
        x, y = (token % columns + 0.5) * 300 / columns, (token // columns + 0.5) * 130 / rows
        assert mask.getpixel((int(x), int(y))) == (255 if token in kept else 0)
    assert answer.token_map.draw().width > 640


def test_a_processor_that_does_not_fit_the_model_is_named(folder: Path, picture: Picture) -> None:
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))
    engine.family.processor.image_processor.merge_size = 4
    with pytest.raises(InvalidInput, match="processor config does not fit its model"):
        engine.chat([user_message("?", picture(260, 260))])

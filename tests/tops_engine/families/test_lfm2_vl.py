"""Test LFM2-VL: tiles and the whole picture, its signals, convolutions with kept tokens only, and the cost of a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints_lfm2 import PATCH_SIZE, save_lfm2_vl
from tests.support.slow_reference import model_inputs_embeds
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.families.lfm2_vl import ConvolutionShape
from tops_engine.families.parts.lfm2_processor import Lfm2PictureProcessor, Plan
from tops_engine.settings import Generation, ModelSpec, Pruning

CONVOLUTIONS, ATTENTION = (0, 1, 3, 4, 6), (2, 5, 7)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = save_lfm2_vl(tmp_path_factory.mktemp("lfm2"))
    return Engine.load(ModelSpec(model=str(folder), device="cpu", attention="eager"))


def prepare(family: Family, *pictures: Any) -> Prompt:
    return family.prepare(read_conversation([user_message("What is this?", *pictures)]))


@pytest.mark.parametrize(
    ("height", "width", "plan"),
    [
        # With the published settings; as transformers 5.23 plans them.
        (256, 256, Plan(1, 1, 8, 8)),
        (512, 512, Plan(1, 1, 16, 16)),
        (100, 100, Plan(1, 1, 8, 8)),
        (480, 640, Plan(1, 1, 13, 18)),
        (1080, 1920, Plan(2, 4, 12, 21)),
        (2000, 1000, Plan(4, 2, 22, 11)),
        (1024, 1024, Plan(2, 2, 16, 16)),
    ],
)
def test_pictures_of_published_sizes_are_cut_as_transformers_does(height: int, width: int, plan: Plan) -> None:
    assert Lfm2PictureProcessor().plan(height, width) == plan


def test_tiles_have_names_and_the_whole_picture_follows(engine: Engine, picture: Picture) -> None:
    prompt = prepare(engine.family, picture(110, 70))
    (span,) = prompt.spans
    assert span.layout.grids == ((1, 3), (2, 4))
    names = engine.family.tokenizer.convert_ids_to_tokens(prompt.input_ids)
    marks = [name for name in names if name.startswith("<|im") and name not in ("<|im_start|>", "<|im_end|>")]
    tiles = ["<|img_row_1_col_1|>", "<|img_row_1_col_2|>", "<|img_thumbnail|>"]
    assert marks == ["<|image_start|>", *tiles, "<|image_end|>"]
    assert [len(span.positions), names.count("<image>")] == [11, 11]


def test_a_token_shows_the_patches_in_its_box(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompt = prepare(family, picture(110, 70))
    (layout,) = (span.layout for span in prompt.spans)
    shapes, first = prompt.pixels["spatial_shapes"].tolist(), 0
    corners = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.0)]
    spans = [(0.5, 1.0), (0.5, 1.0), (1.0, 1.0)]
    unshuffle = family.model.model.multi_modal_projector.pixel_unshuffle
    for (height, width), (left, top), (across, down) in zip(shapes, corners, spans, strict=True):
        for row, column in [(0, 0), (height - 1, width - 1), (1, 2)]:
            patches = torch.zeros(1, height, width, 8)
            patches[0, row, column] = 1
            (token,) = unshuffle(patches).flatten(0, 2).abs().sum(dim=1).nonzero().flatten().tolist()
            box = layout.boxes[first + token].tolist()
            assert box[0] <= left + across * (column + 0.5) / width < box[2]
            assert box[1] <= top + down * (row + 0.5) / height < box[3]
        first += height * width // 4
    assert first == layout.num_tokens


def test_features_and_signals_are_those_of_the_tower(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompt = prepare(family, picture(110, 70, 1), picture(30, 40, 2))
    embeds = model_inputs_embeds(family, prompt)[0]
    with torch.inference_mode():
        (encoded,) = family.encode([prompt])
        output = family.model.model.vision_tower(**prompt.pixels, output_attentions=True)
        received = []
        for attention, (height, width) in zip(
            output.attentions[-1], prompt.pixels["spatial_shapes"].tolist(), strict=True
        ):
            count = height * width
            means = attention[:, :count, :count].mean(dim=(0, 1)).view(height // 2, 2, width // 2, 2)
            received.append(means.mean(dim=(1, 3)).flatten())
        for tokens, span in zip(encoded, prompt.spans, strict=True):
            torch.testing.assert_close(tokens.features, embeds[span.positions], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(tokens.project(tokens.encoder_features()), tokens.features)
        attention = torch.cat([tokens.vision_attention() for tokens in encoded])
        torch.testing.assert_close(attention, torch.cat(received), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("number", range(len(ATTENTION)))
def test_attention_rows_are_the_eager_ones(engine: Engine, picture: Picture, number: int) -> None:
    family, layer = engine.family, ATTENTION[number]
    prompt, decoder = prepare(family, picture(110, 70, 1)), family.decoder
    with torch.inference_mode():
        output = family.model(
            input_ids=prompt.input_ids[None], **prompt.pixels, output_attentions=True, output_hidden_states=True
        )
        hidden = output.hidden_states[layer]
        rope = decoder.rope(hidden, prompt.position_ids, decoder.layer_types[layer])
        asking, visual = torch.arange(len(prompt.input_ids))[-5:], prompt.spans[0].positions
        rows = decoder.attention_rows(layer, hidden[0], tuple(part[0] for part in rope), asking, visual)
    expected = output.attentions[number][0].mean(dim=0)[asking][:, visual]
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("pruning", [Pruning(method="none"), Pruning(method="random", keep=0.3)])
def test_flops_differ_from_torchs_by_what_the_fallback_does_otherwise(
    engine: Engine, picture: Picture, pruning: Pruning
) -> None:
    engine.forget()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat([user_message("What?", picture(110, 70))], pruning, Generation(max_tokens=3))
    shape, steps = engine.family.decoder.shape, answer.usage.completion_tokens - 1
    assert isinstance(shape, ConvolutionShape)
    assert steps == 2
    # The convolution makes outputs that are cut off: a kernel's length but one in the prompt, one in each step.
    surplus = 2 * shape.hidden_size * shape.kernel_size * (shape.kernel_size - 1 + steps)
    # From transformers 5.24 on, the tower scales its positions by a matrix product, which the formula leaves out.
    scaling = counter.get_flop_counts()["Siglip2VisionModel.embeddings"].get(torch.ops.aten.mm, 0)
    assert counter.get_total_flops() - answer.flops.total == len(CONVOLUTIONS) * surplus + scaling


def test_the_report_names_the_attention_layer_that_rated(engine: Engine, picture: Picture) -> None:
    usage = engine.chat([user_message("What?", picture(110, 70))], Pruning(keep=0.4), Generation(max_tokens=2)).usage
    assert [(stage.layer, stage.rating_layer) for stage in usage.stages] == [(0, None), (3, 5), (6, 7)]


def test_tiles_without_the_whole_picture_are_refused(tmp_path: Path) -> None:
    folder = save_lfm2_vl(tmp_path)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_thumbnail": False}))
    with pytest.raises(UnsupportedModel, match="use_thumbnail"):
        Engine.load(ModelSpec(model=str(folder), device="cpu"))


def test_patches_hold_the_pixels_of_the_picture(engine: Engine, picture: Picture) -> None:
    shown = picture(32, 16)
    prompt = prepare(engine.family, shown)
    assert prompt.pixels["spatial_shapes"].tolist() == [[2, 4]]
    values = prompt.pixels["pixel_values"][0, :8].view(2, 4, PATCH_SIZE, PATCH_SIZE, 3).permute(0, 2, 1, 3, 4)
    pixels = torch.from_numpy(np.array(shown)).float() / 127.5 - 1
    torch.testing.assert_close(values.reshape(16, 32, 3), pixels)
    assert prompt.pixels["pixel_attention_mask"][0].sum() == 8

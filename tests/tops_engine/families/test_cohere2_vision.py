"""Test Command A Vision and Aya Vision: tiles, layers without a rotary embedding, vision signals and FLOPs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints_cohere import save_aya_vision, save_cohere2_vision
from tests.support.slow_reference import model_inputs_embeds
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.families.cohere2_vision import CohereDecoder
from tops_engine.families.parts.cohere_processor import CoherePictures
from tops_engine.settings import Generation, ModelSpec, Pruning

SAVE: dict[str, Callable[..., Path]] = {"command": save_cohere2_vision, "aya": save_aya_vision}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    def load(name: str) -> Engine:
        return Engine.load(
            ModelSpec(model=str(SAVE[name](tmp_path_factory.mktemp(name))), device="cpu", attention="eager")
        )

    return {name: load(name) for name in SAVE}


@pytest.fixture(params=SAVE)
def engine(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Engine:
    return engines[request.param]


def prepare(family: Family, *pictures: Any) -> Prompt:
    return family.prepare(read_conversation([user_message("What is this?", *pictures)]))


def test_tiles_and_the_whole_picture_stand_in_the_text(engines: dict[str, Engine], picture: Picture) -> None:
    tile = "<|IMG_PATCH|>" * 4
    texts = {
        "command": f"{tile}<|IMG_LINE_BREAK|>" * 3,
        "aya": f"TILE_1{tile}TILE_2{tile}TILE_GLOBAL{tile}",
    }
    for name, text in texts.items():
        family = engines[name].family
        prompt = prepare(family, picture(112, 56))
        assert f"<|START_OF_IMG|>{text}<|END_OF_IMG|>What" in family.tokenizer.decode(prompt.input_ids)
        (layout,) = (span.layout for span in prompt.spans)
        assert layout.grids == ((2, 2), (2, 4))


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        # With the published settings; as transformers 5.23 cuts them.
        (300, 300, (1, 1)),
        (512, 512, (1, 1)),
        (513, 512, (2, 1)),
        (480, 640, (1, 2)),
        (1080, 1920, (3, 4)),
        (2000, 1000, (4, 2)),
        (6000, 500, (12, 1)),
    ],
)
def test_pictures_of_published_sizes_are_cut_as_transformers_does(
    height: int, width: int, grid: tuple[int, int]
) -> None:
    assert CoherePictures().grid(height, width) == grid


def test_features_and_signals_are_those_of_the_tower(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompt = prepare(family, picture(150, 80, 1), picture(40, 50, 2))
    embeds = model_inputs_embeds(family, prompt)[0]
    with torch.inference_mode():
        (encoded,) = family.encode([prompt])
        features = [tokens.project(tokens.encoder_features()) for tokens in encoded]
        attention = torch.cat([tokens.vision_attention() for tokens in encoded])
        attentions = family.model.model.vision_tower(prompt.pixels["pixel_values"], output_attentions=True).attentions
    # The mean over heads, over those who pay, and over the 2 x 2 patches of a token.
    received = attentions[-1].mean(dim=(1, 2)).view(-1, 2, 2, 2, 2).mean(dim=(2, 4))
    torch.testing.assert_close(attention, received.flatten(), atol=1e-6, rtol=1e-4)
    for tokens, projected, span in zip(encoded, features, prompt.spans, strict=True):
        torch.testing.assert_close(tokens.features, embeds[span.positions], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(projected, tokens.features)


@pytest.mark.parametrize("layer", [2, 3])
def test_attention_rows_are_the_eager_ones(engines: dict[str, Engine], picture: Picture, layer: int) -> None:
    family = engines["command"].family
    prompt, decoder = prepare(family, picture(150, 80, 1)), family.decoder
    assert decoder.layer_types[2:4] == ("sliding_attention", "full_attention")
    with torch.inference_mode():
        output = family.model(
            input_ids=prompt.input_ids[None], **prompt.pixels, output_attentions=True, output_hidden_states=True
        )
        hidden = output.hidden_states[layer]
        rope = decoder.rope(hidden, prompt.position_ids, decoder.layer_types[layer])
        asking, visual = torch.arange(len(prompt.input_ids))[-5:], prompt.spans[0].positions
        rows = decoder.attention_rows(layer, hidden[0], tuple(part[0] for part in rope), asking, visual)
    expected = output.attentions[layer][0].mean(dim=0)[asking][:, visual]
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-4)
    assert isinstance(decoder, CohereDecoder)


def test_flops_are_those_torch_counts(engine: Engine, picture: Picture) -> None:
    engine.forget()
    pruning = Pruning(method="random", keep=0.4)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat([user_message("What?", picture(150, 80))], pruning, Generation(max_tokens=3))
    assert answer.flops.total == counter.get_total_flops()


def test_fewer_pixels_are_fewer_tiles(engine: Engine, picture: Picture) -> None:
    family = engine.family
    with family.other_bounds(None, 2 * 56 * 56):
        assert prepare(family, picture(112, 112)).visual_tokens[0] <= 12
    assert prepare(family, picture(112, 112)).visual_tokens == [20]


def test_another_text_model_is_refused(tmp_path: Path) -> None:
    folder = save_aya_vision(tmp_path, "llama")
    with pytest.raises(UnsupportedModel, match="of the type 'llama'; supported in this family are cohere, cohere2"):
        Engine.load(ModelSpec(model=str(folder), device="cpu"))

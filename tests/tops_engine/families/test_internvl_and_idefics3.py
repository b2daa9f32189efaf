"""Test InternVL, Idefics3 and SmolVLM: tiles, prompts, places of tokens, and vision signals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import Picture
from tests.support.checkpoints import IMAGE_SIZE, PATCH_SIZE
from tests.support.checkpoints_idefics3 import save_idefics3, save_smolvlm
from tests.support.checkpoints_internvl import save_internvl
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.families import Family, Prompt
from tops_engine.loading import load_family
from tops_engine.media.layout import VisualLayout
from tops_engine.settings import ModelSpec

SAVE: dict[str, Callable[..., Path]] = {"internvl": save_internvl, "idefics3": save_idefics3, "smolvlm": save_smolvlm}
#: Each tile is 4 x 4 patches and 2 x 2 tokens.
PATCHES, SIDE = IMAGE_SIZE // PATCH_SIZE, 2


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    def load(name: str) -> Engine:
        folder = SAVE[name](tmp_path_factory.mktemp(name), num_key_value_heads=2)
        return Engine.load(ModelSpec(model=str(folder), device="cpu", attention="eager"))

    return {name: load(name) for name in SAVE}


@pytest.fixture(scope="module")
def families(engines: dict[str, Engine]) -> dict[str, Family]:
    return {name: engine.family for name, engine in engines.items()}


@pytest.fixture(params=SAVE)
def family(request: pytest.FixtureRequest, families: dict[str, Family]) -> Family:
    return families[request.param]


def gradient(width: int, height: int) -> Image.Image:
    """Return a picture whose red grows from left to right and green from top to bottom."""
    red = torch.linspace(0, 255, width).expand(height, width)
    green = torch.linspace(0, 255, height)[:, None].expand(height, width)
    pixels = torch.stack([red, green, torch.zeros(height, width)], dim=-1).round().byte()
    return Image.fromarray(pixels.numpy())


def prepare(family: Family, *pictures: Image.Image) -> Prompt:
    return family.prepare(read_conversation([user_message("What?", *pictures)]))


def tiles_of(prompt: Prompt) -> torch.Tensor:
    return prompt.pixels["pixel_values"].reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)


# The published sizes (tiles of 448 and 384 pixels) at an eighth and at 56 / 384 of their scale.
@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("internvl", (56, 56), (0, 0)),
        ("internvl", (80, 60), (3, 4)),
        ("internvl", (240, 135), (2, 4)),
        ("internvl", (250, 250), (3, 3)),
        ("internvl", (1000, 10), (1, 12)),
        ("smolvlm", (93, 70), (3, 4)),
        ("smolvlm", (49, 49), (4, 4)),
        ("idefics3", (40, 200), (4, 1)),
    ],
)
def test_pictures_are_cut_as_published(
    families: dict[str, Family], name: str, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    prompt = prepare(families[name], gradient(*size))
    rows, columns = grid
    layout = prompt.spans[0].layout
    assert len(tiles_of(prompt)) == rows * columns + 1
    assert layout.num_tokens == SIDE**2 * (rows * columns + 1)
    assert layout.grids == ((SIDE, SIDE), (rows * SIDE, columns * SIDE))[: 1 + (rows > 0)]


def test_the_prompt_of_internvl(families: dict[str, Family]) -> None:
    family = families["internvl"]
    text = family.tokenizer.decode(prepare(family, gradient(112, 56), gradient(56, 56)).input_ids)
    first, second = ("<img>" + "<IMG_CONTEXT>" * count + "</img>\n" for count in (3 * SIDE**2, SIDE**2))
    assert text == f"<|im_start|>user\n{first}{second}What?<|im_end|>\n<|im_start|>assistant\n"


def test_frames_of_internvl_are_numbered_tiles_among_the_pictures(
    families: dict[str, Family], picture: Picture
) -> None:
    family = families["internvl"]
    frames = [picture(90, 60, seed) for seed in range(3)]
    parts: list[Any] = [
        {"type": "image", "image": picture(112, 56, 7)},
        {"type": "video", "video": frames},
        {"type": "image", "image": picture(56, 56, 8)},
        {"type": "text", "text": "What?"},
    ]
    prompt = family.prepare(read_conversation([{"role": "user", "content": parts}]))
    tile = "<img>" + "<IMG_CONTEXT>" * SIDE**2 + "</img>"
    first = "<img>" + "<IMG_CONTEXT>" * 3 * SIDE**2 + "</img>"
    text = f"<|im_start|>user\n{first}\nFrame1: {tile}\nFrame2: {tile}\nFrame3: {tile}\n{tile}\nWhat?<|im_end|>\n"
    assert family.tokenizer.decode(prompt.input_ids) == f"{text}<|im_start|>assistant\n"
    assert [span.layout.num_tokens for span in prompt.spans] == [12, 12, 4]
    assert prompt.spans[1].layout.frame is not None
    assert prompt.spans[1].layout.frame.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    # The row of what the tower sees: three tiles, three frames, one picture.
    alone = prepare(family, picture(112, 56, 7)), prepare(family, picture(56, 56, 8))
    pixels = tiles_of(prompt)
    assert torch.equal(pixels[:3], tiles_of(alone[0]))
    assert torch.equal(pixels[6:], tiles_of(alone[1]))
    torch.testing.assert_close(pixels[3:6], family.processor.frame_processor(frames))


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_the_prompt_of_idefics3_and_smolvlm(families: dict[str, Family], name: str) -> None:
    family = families[name]
    prompt = prepare(family, gradient(200, 50))
    tile = "<image>" * SIDE**2
    fake = "<fake_token_around_image>"
    tiles = "".join(f"{fake}<row_1_col_{column}>{tile}" for column in (1, 2, 3, 4))
    picture = f"{tiles}\n\n{fake}<global-img>{tile}{fake}"
    text = family.tokenizer.decode(prompt.input_ids)
    assert text == f"<|im_start|>User:{picture}What?<end_of_utterance>\nAssistant:"
    # The tokens of the picture are those in five pieces with text between them.
    assert family.tokenizer.convert_ids_to_tokens(prompt.input_ids[prompt.spans[0].positions]) == ["<image>"] * 20
    assert len(prompt.spans[0].positions.diff().nonzero()) == 19
    assert int((prompt.spans[0].positions.diff() > 1).sum()) == 4


@given(width=st.integers(1, 400), height=st.integers(1, 400))
def test_any_picture_has_a_token_for_each_placeholder(families: dict[str, Family], width: int, height: int) -> None:
    for family in families.values():
        prompt = prepare(family, gradient(width, height))
        assert prompt.spans[0].layout.num_tokens == SIDE**2 * len(tiles_of(prompt))


@pytest.mark.parametrize("size", [(56, 56), (80, 60), (60, 80), (250, 60), (60, 200), (57, 55)], ids=str)
def test_every_token_lies_where_its_pixels_come_from(family: Family, size: tuple[int, int]) -> None:
    prompt = prepare(family, gradient(*size))
    processor = family.processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    colours = F.avg_pool2d(tiles_of(prompt) * std + mean, 2 * PATCH_SIZE).flatten(2).transpose(1, 2)
    (values,) = family.arrange(colours, [prompt])
    boxes = prompt.spans[0].layout.boxes
    for channel in (0, 1):
        middle = boxes[:, [channel, channel + 2]].mean(dim=1)
        assert (values[:, channel] - middle).abs().max() < 0.05


def test_pictures_of_a_batch_are_encoded_as_alone(family: Family, picture: Picture) -> None:
    prompts = [
        prepare(family, picture(200, 60), picture(50, 50, 1)),
        prepare(family),
        prepare(family, picture(60, 110, 2)),
    ]
    with torch.inference_mode():
        together = family.encode(prompts)
        alone = [family.encode([prompt])[0] for prompt in prompts]
        for prompt, images, separately in zip(prompts, together, alone, strict=True):
            assert len(images) == len(separately) == len(prompt.spans)
            for one, other in zip(images, separately, strict=True):
                torch.testing.assert_close(one.features, other.features, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(one.vision_attention(), other.vision_attention(), atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(one.vision_keys(), other.vision_keys(), atol=1e-5, rtol=1e-5)
                assert torch.equal(one.tiles() - one.tiles().min(), other.tiles() - other.tiles().min())


def test_vision_attention_is_that_of_the_tower_averaged_over_the_patches_of_a_token(
    family: Family, picture: Picture
) -> None:
    prompt = prepare(family, picture(120, 56))
    inner = family.model.model
    with torch.inference_mode():
        ((tokens,),) = family.encode([prompt])
        if hasattr(inner, "vision_tower"):
            attention = inner.vision_tower(tiles_of(prompt), output_attentions=True).attentions[-1]
            patches = attention[:, :, 0, 1:].mean(dim=1)  # from [CLS], mean over heads
        else:
            attention = inner.vision_model(tiles_of(prompt), output_attentions=True).attentions[-1]
            patches = attention.mean(dim=(1, 2))  # received, mean over heads and those who ask
    blocks = patches.reshape(-1, SIDE, 2, SIDE, 2).mean(dim=(2, 4))
    torch.testing.assert_close(tokens.vision_attention(), blocks.flatten())


def test_encoder_features_projected_are_the_visual_tokens(family: Family, picture: Picture) -> None:
    prompts = [prepare(family, picture(width, 60, width)) for width in (200, 56)]
    with torch.inference_mode():
        for (tokens,) in family.encode(prompts):
            torch.testing.assert_close(tokens.project(tokens.encoder_features()), tokens.features)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_keys_of_internvl_belong_to_the_last_layer(tmp_path: Path, picture: Picture, qk_norm: bool) -> None:
    folder = save_internvl(tmp_path, vision={"use_qk_norm": qk_norm})
    family = load_family(ModelSpec(model=str(folder), device="cpu"))
    prompt = prepare(family, picture(56, 56))
    tower = family.model.model.vision_tower
    layer = tower.encoder.layer[-1]
    with torch.inference_mode():
        ((tokens,),) = family.encode([prompt])
        hidden = tower(tiles_of(prompt), output_hidden_states=True).hidden_states
        keys = layer.attention.k_norm(layer.attention.k_proj(layer.layernorm_before(hidden[-2])))[0, 1:]
        heads = keys.view(PATCHES**2, 2, 32).mean(dim=1)
    expected = heads.reshape(SIDE, 2, SIDE, 2, 32).mean(dim=(1, 3)).flatten(0, 1)
    torch.testing.assert_close(tokens.vision_keys(), expected)
    # The projector reads blocks of four patches: [CLS] cannot be a token.
    assert tokens.cls_features is None


def test_idefics3_has_no_cls_features(families: dict[str, Family], picture: Picture) -> None:
    ((tokens,),) = families["idefics3"].encode([prepare(families["idefics3"], picture())])
    assert tokens.cls_features is None


@pytest.mark.parametrize(
    ("save", "options", "length"),
    [(save_internvl, {}, "image_seq_length"), (save_smolvlm, {"splits": False}, "image_seq_len")],
)
def test_a_processor_that_does_not_fit_the_model_is_an_error(
    tmp_path: Path, picture: Picture, save: Any, options: dict[str, Any], length: str
) -> None:
    folder = save(tmp_path, **options)
    config = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(config | {length: 5}))
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))
    with pytest.raises(InvalidInput, match="made 5 image tokens but the model makes 4"):
        engine.chat([user_message("What?", picture(56, 56))])


def test_a_placeholder_in_the_text_stays_text(family: Family, picture: Picture) -> None:
    assert family.processor.image_token in family.placeholders
    for token in family.placeholders:
        prompt = family.prepare(read_conversation([user_message(f"What is {token}?", picture())]))
        plain = family.prepare(read_conversation([user_message("What is this?", picture())]))
        assert [span.layout.num_tokens for span in prompt.spans] == [span.layout.num_tokens for span in plain.spans]


def test_the_token_map_shows_overview_and_tiles(families: dict[str, Family], picture: Picture) -> None:
    layouts: list[VisualLayout] = [prepare(family, picture(110, 56)).spans[0].layout for family in families.values()]
    for layout in layouts:
        for view, (rows, columns) in enumerate(layout.grids):
            boxes = layout.boxes[layout.view == view]
            assert len(boxes) == rows * columns
            # The boxes of a view cover the picture once.
            assert (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sum() == pytest.approx(1, abs=1e-5)

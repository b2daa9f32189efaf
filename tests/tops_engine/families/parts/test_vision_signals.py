"""Compare the vision signals of methods with transformers' own hidden states and attention maps."""

from pathlib import Path

import pytest
import torch

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_siglip_llava
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.families.parts.vision_signals import CPU_BLOCK, patch_attention, received_attention
from tops_engine.families.parts.vision_tower import middle_layer, shallow_layer
from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.methods import VisualTokens
from tops_engine.settings import ModelSpec

NUM_HEADS, WIDTH = 2, 64


def encode(family: Family, *pictures: object) -> tuple[Prompt, list[VisualTokens]]:
    prompt = family.prepare(read_conversation([user_message(" What is shown? ", *pictures)]))  # type: ignore[arg-type]
    with torch.inference_mode():
        (images,) = family.encode([prompt])
    return prompt, images


def test_keys_and_cls_features_are_those_of_the_layer_that_feeds_the_projector(
    llava_engine: Engine, picture: Picture
) -> None:
    family = llava_engine.family
    prompt, images = encode(family, picture(80, 60), picture(60, 60, 1))
    tower = family.model.model.vision_tower
    with torch.inference_mode():
        hidden = tower(prompt.pixels["pixel_values"], output_hidden_states=True).hidden_states
        # vision_feature_layer is -2 of 5 hidden states: the output of layer 2, of the four 0 .. 3.
        layer = tower.encoder.layers[2]
        keys = layer.self_attn.k_proj(layer.layer_norm1(hidden[2]))
    for index, image in enumerate(images):
        heads = keys[index, 1:].view(16, NUM_HEADS, WIDTH // NUM_HEADS)
        torch.testing.assert_close(image.vision_keys(), heads.mean(dim=1))
        assert image.cls_features is not None
        torch.testing.assert_close(image.cls_features(), hidden[3][index, :1].expand(16, -1))
        assert image.tiles().tolist() == [index + 1] * 16


def test_the_last_layer_as_one_head(llava_engine: Engine, picture: Picture) -> None:
    family = llava_engine.family
    prompt, (image,) = encode(family, picture(80, 60))
    tower = family.model.model.vision_tower
    with torch.inference_mode():
        hidden = tower(prompt.pixels["pixel_values"], output_hidden_states=True).hidden_states
        layer = tower.encoder.layers[3]
        normed = layer.layer_norm1(hidden[3])
        queries, keys = layer.self_attn.q_proj(normed)[0], layer.self_attn.k_proj(normed)[0]
    expected = (queries @ keys.T / WIDTH**0.5).softmax(dim=1)[0, 1:]
    torch.testing.assert_close(image.last_layer_attention(), expected)
    torch.testing.assert_close(image.last_layer_keys(), keys[1:])


def test_tokens_of_tiles(llava_next_engine: Engine, picture: Picture) -> None:
    family = llava_next_engine.family
    _, images = encode(family, picture(112, 112), picture(112, 56, 1))
    for image, num_tiles in zip(images, (5, 3), strict=True):
        tiles, newline = image.tiles(), (image.layout.boxes == 0).all(dim=1)
        assert (tiles[newline] == 0).all()
        first = int(tiles[0])
        assert (tiles[~newline] - first).bincount().tolist() == [16] * num_tiles
        # The crops stand side by side: the first row of tokens runs through the upper ones.
        assert (tiles[16:24] - first).tolist() == [1] * 4 + [2] * 4
        assert image.cls_features is not None
        features = image.cls_features()
        assert (features[newline] == 0).all()
        assert len({tuple(row) for row in features[~newline].tolist()}) == num_tiles


def test_project_makes_tokens_of_features(llava_engine: Engine, picture: Picture) -> None:
    _, (image,) = encode(llava_engine.family, picture())
    with torch.inference_mode():
        torch.testing.assert_close(image.project(image.encoder_features()[3:7]), image.features[3:7])


def test_the_question_is_the_text_of_the_last_message(llava_engine: Engine, picture: Picture) -> None:
    family = llava_engine.family
    messages = [user_message("First?"), {"role": "assistant", "content": "Yes."}, user_message("And now?", picture())]
    prompt = family.prepare(read_conversation(messages))
    assert prompt.question == "And now?"
    _, (image,) = encode(family, picture())
    ids = family.tokenizer("What is shown?", add_special_tokens=False).input_ids
    with torch.inference_mode():
        embedded = image.question_embeddings()
    torch.testing.assert_close(embedded, family.decoder.text_model.embed_tokens.weight[ids])


def test_a_tower_without_cls_has_no_cls_features(tmp_path: Path, picture: Picture) -> None:
    engine = Engine.load(ModelSpec(model=str(save_siglip_llava(tmp_path)), device="cpu"))
    _, (image,) = encode(engine.family, picture())
    assert image.cls_features is None
    assert image.vision_keys().shape == (16, WIDTH // NUM_HEADS)
    assert image.last_layer_attention().sum() == pytest.approx(1, abs=1e-5)


def test_what_a_family_does_not_give_is_refused_when_asked_for() -> None:
    layout = VisualLayout(grid_boxes(2, 2), torch.zeros(4).long(), ((2, 2),))
    image = VisualTokens(torch.ones(4, 3), layout, lambda: torch.ones(4, 3), lambda: torch.ones(4))
    with pytest.raises(UnsupportedModel, match="gives no vision keys"):
        image.vision_keys()
    with pytest.raises(UnsupportedModel, match="gives no projector"):
        image.project(torch.ones(1, 3))


def test_the_attention_that_patches_receive_in_two_layers(tmp_path: Path, picture: Picture) -> None:
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path)), device="cpu", attention="eager"))
    prompt, (image,) = encode(engine.family, picture(80, 60))
    tower = engine.family.model.model.vision_tower
    with torch.inference_mode():
        attentions = tower(prompt.pixels["pixel_values"], output_attentions=True).attentions
    # Layer 2 feeds the projector.
    assert middle_layer(24) == 8
    for signal, layer in (image.received_attention, 2), (image.middle_attention, middle_layer(4)):
        torch.testing.assert_close(signal(), attentions[layer][0].mean(dim=(0, 1))[1:])
    assert shallow_layer(24) == 5
    torch.testing.assert_close(image.shallow_attention(), attentions[shallow_layer(4)][0, :, 0, 1:].mean(dim=0))


@pytest.mark.parametrize("num_tokens", [1, 50, 600])
@pytest.mark.parametrize("has_cls", [False, True])
def test_received_attention_is_the_mean_over_the_whole_matrix(num_tokens: int, has_cls: bool) -> None:
    # 600 tokens are computed in parts of a matrix, of 50 several matrices at a time.
    assert 50**2 * 6 < CPU_BLOCK < 600**2
    generator = torch.Generator().manual_seed(num_tokens)
    queries, keys = (torch.randn(3, num_tokens, 16, generator=generator, dtype=torch.bfloat16) for _ in range(2))
    q, k = (values.double().view(3, num_tokens, 2, 8).transpose(1, 2) for values in (queries, keys))
    attention = (q @ k.mT / 8**0.5).softmax(dim=-1).mean(dim=1)
    expected = attention.mean(dim=1)[:, int(has_cls) :].float()
    torch.testing.assert_close(received_attention(queries, keys, 2, 8**-0.5, has_cls), expected)
    if has_cls:
        expected = attention[:, 0, 1:].float()
    torch.testing.assert_close(patch_attention(queries, keys, 2, 8**-0.5, has_cls), expected)

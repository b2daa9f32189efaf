"""Compare TRIM with the method written out, and test the companions with which TRIM and CDPruner read the question."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_siglip_llava, vision_config
from tests.support.checkpoints_clip import save_clip
from tests.support.visual_tokens import of_tile, random_tokens
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, ModelNotFound, UnsupportedModel
from tops_engine.methods.trim import TRIM
from tops_engine.settings import Generation, ModelSpec, Pruning


@pytest.mark.parametrize(("sizes", "newlines", "counts"), [([20], 0, [7]), ([20], 0, [1]), ([12, 12, 6], 3, [4, 4, 2])])
def test_the_least_similar_patches_and_the_mean_of_the_others(
    sizes: list[int], newlines: int, counts: list[int]
) -> None:
    image = random_tokens(sizes, newlines, seed=len(sizes))
    (selection,) = TRIM().select_visual([image], [sum(counts)])
    patches, question, *_ = image.clip_embeddings(None)
    expected: dict[int, torch.Tensor] = {}
    for tile, num_keep in enumerate(counts, start=1):
        tokens = of_tile(image, tile)
        selected = sorted(tokens, key=lambda token: float(patches[token] @ question))[: num_keep - 1]
        merged = [token for token in tokens if token not in selected]
        expected |= {token: image.features[token] for token in selected}
        expected[merged[-1]] = image.project(image.encoder_features()[merged].mean(dim=0))
    assert selection.indices.tolist() == sorted(expected)
    torch.testing.assert_close(selection.features, torch.stack([expected[place] for place in sorted(expected)]))


@pytest.fixture(scope="module")
def bare_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Return an engine whose checkpoint has no companion."""
    return Engine.load(ModelSpec(model=str(save_llava(tmp_path_factory.mktemp("bare"))), device="cpu"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_embeddings_are_those_of_the_whole_clip_model(bare_engine: Engine, clip_folder: Path, picture: Picture) -> None:
    family = bare_engine.family
    prompt = family.prepare(read_conversation([user_message("What is shown? " * 40, picture(80, 60))]))
    clip = CLIPModel.from_pretrained(clip_folder)
    ids = family.tokenizer(prompt.question, truncation=True, max_length=77, return_tensors="pt").input_ids
    with torch.inference_mode():
        ((image,),) = family.encode([prompt])
        embedded = image.clip_embeddings(str(clip_folder))
        text = clip.text_projection(clip.text_model(ids).pooler_output)[0]
        patches = clip.visual_projection(clip.vision_model.post_layernorm(image.encoder_features()))
    torch.testing.assert_close(embedded.question, text)
    torch.testing.assert_close(embedded.patches, patches)


@pytest.mark.parametrize("method", ["trim", "cdpruner"])
def test_a_companion_is_named_and_loaded_once(
    bare_engine: Engine, clip_folder: Path, picture: Picture, method: str
) -> None:
    messages = [user_message("What?", picture(80, 60), picture(60, 60, 1))]
    pruning = Pruning(method=method, keep=0.3, clip=str(clip_folder))
    answers = [bare_engine.chat(messages, pruning, Generation(max_tokens=3)) for _ in range(2)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].usage.layer_average == 10
    bare_engine.offload()
    assert bare_engine.chat(messages, pruning, Generation(max_tokens=3)).token_ids == answers[0].token_ids


@pytest.mark.parametrize("method", ["trim", "cdpruner"])
def test_without_a_companion_it_says_what_to_name(bare_engine: Engine, picture: Picture, method: str) -> None:
    with pytest.raises(InvalidInput, match="name the CLIP model that its vision tower is from"):
        bare_engine.chat([user_message("What?", picture())], Pruning(method=method, keep=0.3))


def test_companions_that_do_not_fit_are_refused(bare_engine: Engine, picture: Picture, tmp_path: Path) -> None:
    def ask(clip: str) -> None:
        bare_engine.chat([user_message("What?", picture())], Pruning(method="trim", keep=0.3, clip=clip))

    wide = vision_config()
    wide.hidden_size = 96
    with pytest.raises(UnsupportedModel, match="reads vision features of width 96 and this checkpoint's have 64"):
        ask(str(save_clip(tmp_path / "wide", wide)))
    with pytest.raises(ModelNotFound, match=r"^There is no folder"):
        ask(str(tmp_path / "nowhere"))
    with pytest.raises(UnsupportedModel, match="is a 'llava' model; name a CLIP model"):
        ask(str(save_llava(tmp_path / "llava")))
    folder = save_clip(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"lacks 1 weights, such as text_projection\.weight"):
        ask(str(folder))
    assert bare_engine.chat([user_message("What?", picture())], generation=Generation(max_tokens=1)).token_ids


def test_other_vision_towers_have_no_clip_space(tmp_path: Path, picture: Picture, clip_folder: Path) -> None:
    engine = Engine.load(ModelSpec(model=str(save_siglip_llava(tmp_path)), device="cpu"))
    messages = [user_message("What?", picture())]
    with pytest.raises(UnsupportedModel, match="The vision tower is not CLIP's"):
        engine.chat(messages, Pruning(method="trim", keep=0.3, clip=str(clip_folder)))
    answer = engine.chat(messages, Pruning(method="cdpruner", keep=0.25, text_space="llm"), Generation(max_tokens=1))
    assert answer.usage.layer_average == 4
    for method in ("visionzip", "prumerge_plus", "pooling"):
        assert engine.chat(messages, Pruning(method=method, keep=0.25), Generation(max_tokens=1)).text is not None

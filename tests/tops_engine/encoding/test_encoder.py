"""Test encoders on this machine: the tokens are the engine's, and what cannot be served is refused."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_llava_next, save_siglip_llava
from tests.support.checkpoints_gemma import save_gemma3
from tests.support.checkpoints_idefics3 import save_idefics3
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_qwen import save_qwen2_5_vl
from tests.support.checkpoints_video import save_onevision
from tops_engine.conversation.messages import user_message
from tops_engine.encoding.encoder import PictureEncoder
from tops_engine.encoding.kept_tokens import kept_tokens
from tops_engine.engine import Engine
from tops_engine.errors import InvalidImage, InvalidInput, UnsupportedModel
from tops_engine.remote.encoding import EncodedPicture
from tops_engine.settings import Generation, ModelSpec, Pruning

SIZES = [(160, 120), (60, 160)]


def mini_encoder(**pruning: Any) -> PictureEncoder:
    return PictureEncoder(ModelSpec(model="mini", device="cpu"), Pruning(**pruning))


def tensor_of(encoded: EncodedPicture) -> torch.Tensor:
    """Return what vLLM reads."""
    stream = io.BytesIO(base64.b64decode(encoded.image_embeds))
    tokens = torch.load(stream, weights_only=True)
    assert isinstance(tokens, torch.Tensor)
    return tokens


@pytest.mark.parametrize(
    "save",
    [
        save_llava,
        pytest.param(save_siglip_llava, marks=pytest.mark.full),
        save_llava_next,
        pytest.param(save_onevision, marks=pytest.mark.full),
        pytest.param(save_internvl, marks=pytest.mark.full),
    ],
)
def test_the_tower_alone_gives_the_tokens_that_the_whole_model_keeps(
    tmp_path: Path, picture: Picture, save: Callable[[Path], Path]
) -> None:
    spec = ModelSpec(model=str(save(tmp_path / "model")), device="cpu")
    encoder, engine = PictureEncoder(spec, Pruning(keep=4)), Engine.load(spec)
    assert encoder.family.weight_bytes < engine.family.weight_bytes
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    for image, encoded in zip(images, encoder.encode_batch(images), strict=True):
        # The engine says which tokens entered the language model.
        answer = engine.chat([user_message("?", image)], Pruning(keep=4, stages="first"), Generation(max_tokens=1))
        assert answer.token_map is not None
        (kept,) = kept_tokens(engine.family, [image], encoder.runs(None))
        assert sorted(kept.indices.tolist()) == answer.token_map.stages[-1][1][0].tolist()
        assert torch.equal(tensor_of(encoded), kept.features)
        assert (encoded.kept, encoded.unpruned) == (4, kept.unpruned)
        assert encoder.encode(image) == encoded


@pytest.mark.parametrize("pruning", [{"keep": 1.0}, {"keep": 20, "merge": True}, {"keep": 20, "tower_keep": 0.5}])
def test_options_of_pruning_are_followed(picture: Picture, pruning: dict[str, Any]) -> None:
    encoder = mini_encoder(**pruning)
    tokens = tensor_of(encoder.encode(picture(96, 96)))
    (expected,) = kept_tokens(encoder.family, [picture(96, 96)], encoder.runs(None))
    assert torch.equal(tokens, expected.features)
    assert len(tokens) == (144 if pruning["keep"] == 1.0 else 20)


def test_merged_tokens_differ_from_kept_ones(picture: Picture) -> None:
    plain, merged = (mini_encoder(keep=20, merge=merge).encode(picture(96, 96)) for merge in (False, True))
    assert not torch.equal(tensor_of(plain), tensor_of(merged))


def test_a_picture_is_written_once(picture: Picture) -> None:
    encoder = mini_encoder(keep=8)
    first, other, again = (encoder.encode(picture(60, 60, seed)) for seed in (1, 2, 1))
    assert again is first
    assert other != first
    assert encoder.encode(picture(60, 60, 1), Pruning(keep=9)).kept == 9


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (save_qwen2_5_vl, "its positions follow the rows and columns of the picture"),
        pytest.param(save_idefics3, "counts the placeholders by the size of a picture", marks=pytest.mark.full),
        pytest.param(save_gemma3, "vLLM's class refuses them", marks=pytest.mark.full),
    ],
)
def test_models_that_vllm_does_not_serve_so_are_refused(
    tmp_path: Path, picture: Picture, save: Callable[[Path], Path], reason: str
) -> None:
    encoder = PictureEncoder(ModelSpec(model=str(save(tmp_path / "model")), device="cpu"))
    with pytest.raises(UnsupportedModel, match=f"cannot be served: .*{reason}.*Models that can: internvl, llava"):
        encoder.encode(picture())


@pytest.mark.parametrize(
    ("pruning", "sentence"),
    [
        ({"schedule": "0:64,1:16"}, "not by a schedule; set the budget by keep"),
        ({"keep": (0.2, 0.5)}, "give keep a single value"),
        ({"flops": 0.5}, "give keep a single value"),
        ({"keep": 0.5, "allocation": "coverage"}, "leave out allocation"),
        ({"keep": 0.5, "positions": "original"}, "leave out positions=original"),
        ({"keep": 0.5, "method": "fastv"}, "prunes inside the language model"),
        ({"keep": 0.5, "method": "none"}, "prunes nothing"),
        ({"keep": 0.5, "method": "cdpruner"}, "reads the question"),
        ({"keep": 0.5, "method": "resize"}, "makes pictures smaller"),
        ({"keep": 200}, "only 144 visual tokens"),
    ],
)
def test_prunings_that_an_encoder_cannot_run_are_refused(
    picture: Picture, pruning: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        mini_encoder(**pruning).encode(picture())


def test_a_fraction_is_refused_where_pictures_differ_in_their_tokens(tmp_path: Path, picture: Picture) -> None:
    encoder = PictureEncoder(ModelSpec(model=str(save_llava_next(tmp_path / "next")), device="cpu"))
    with pytest.raises(InvalidInput, match=r"in place of keep=0\.222 give a number of tokens"):
        encoder.encode(picture(), Pruning(keep=0.222))


def test_a_picture_that_cannot_be_read_leaves_the_encoder_usable(picture: Picture) -> None:
    encoder = mini_encoder(keep=8)
    with pytest.raises(InvalidImage):
        encoder.encode(b"no picture")
    assert encoder.encode(picture()).kept == 8

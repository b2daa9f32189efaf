"""Test checkpoints that are published quantised: they answer as transformers does, or say what is missing.

The tests of bitsandbytes, compressed-tensors and gptqmodel need these packages, and are skipped without them. All run
on a CPU; gptqmodel builds a kernel at first, which takes some minutes.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.conftest import Picture
from tests.support.checkpoints_quantised import (
    save_bitsandbytes,
    save_compressed_tensors,
    save_fp8,
    save_gptqmodel,
    save_plain,
    save_with_method,
)
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, MissingDependency, UnsupportedModel
from tops_engine.quantised_checkpoints import quantisation
from tops_engine.settings import Generation, ModelSpec, Pruning

NUM_TOKENS = 6


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs the package {package.replace('_', '-')}")


FORMATS = [
    pytest.param(save_fp8, id="fp8"),
    *[
        pytest.param(partial(save_bitsandbytes, bits=bits), id=f"bitsandbytes-{bits}bit", marks=needs("bitsandbytes"))
        for bits in (4, 8)
    ],
    *[
        pytest.param(
            partial(save_compressed_tensors, kind=kind),
            id=f"compressed-tensors-{kind}",
            marks=needs("compressed_tensors"),
        )
        for kind in ("fp8", "int8", "int4")
    ],
    *[
        pytest.param(partial(save_gptqmodel, method=method), id=method, marks=needs("gptqmodel"))
        for method in ("awq", "gptq")
    ],
]


def weights_of(engine: Engine) -> torch.Tensor:
    return engine.family.text_model.layers[0].mlp.down_proj.weight


@pytest.mark.parametrize("save", FORMATS)
def test_answers_are_those_of_transformers(save: Callable[[Path], Path], tmp_path: Path, picture: Picture) -> None:
    engine = Engine.load(ModelSpec(model=str(save(tmp_path / "quantised")), device="cpu"))
    messages = [user_message("What is shown?", picture(90, 60))]
    prompt = engine.family.prepare(read_conversation(messages))
    answer = engine.chat(messages, Pruning(keep=1.0), Generation(max_tokens=NUM_TOKENS))
    engine.forget()  # activations rounded to 8 bits may fall to the other side where a prompt is known in part
    pruned = engine.chat(messages, Pruning(keep=0.5), Generation(max_tokens=NUM_TOKENS))
    with torch.inference_mode():
        ids = prompt.input_ids[None]
        expected = engine.family.model.generate(
            input_ids=ids, **prompt.pixels, max_new_tokens=NUM_TOKENS, do_sample=False
        )
    assert answer.token_ids == expected[0, ids.shape[1] :].tolist()
    assert len(pruned.token_ids) == len(answer.token_ids)
    # Quantised weights stay on their device: to make room they are dropped, and loaded again for the next question.
    engine.offload()
    assert not engine.is_loaded
    again = engine.chat(messages, Pruning(keep=0.5), Generation(max_tokens=NUM_TOKENS))
    assert again.token_ids == pruned.token_ids


@pytest.mark.full
@pytest.mark.parametrize("save", [FORMATS[0], *FORMATS[3:6]])
def test_weights_are_those_before_up_to_the_rounding_of_the_format(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    plain = weights_of(Engine.load(ModelSpec(model=str(save_plain(tmp_path / "plain")), device="cpu")))
    read = weights_of(Engine.load(ModelSpec(model=str(save(tmp_path / "quantised")), device="cpu")))
    assert read.dtype == plain.dtype == torch.float32
    worst = (read - plain).abs().max() / plain.abs().max()
    assert 0 < worst < 0.08


@pytest.mark.parametrize(
    ("method", "package", "install"),
    [
        ("gptq", "gptqmodel", "gptqmodel"),
        *[
            pytest.param(*row, marks=pytest.mark.full)
            for row in (
                ("awq", "gptqmodel", "gptqmodel"),
                ("bitsandbytes", "bitsandbytes", "bitsandbytes"),
                ("compressed-tensors", "compressed_tensors", "compressed-tensors"),
                ("torchao", "torchao", "torchao"),
                ("auto-round", "auto_round", "auto-round"),
                ("hqq", "hqq", "hqq"),
            )
        ],
    ],
)
def test_a_missing_package_is_named(method: str, package: str, install: str, tmp_path: Path) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{install} is installed")
    folder = save_with_method(tmp_path, method)
    with pytest.raises(MissingDependency) as error:
        Engine.load(ModelSpec(model=str(folder), device="cpu"))
    sentence = str(error.value)
    assert f"is published with '{method}' quantisation; install what reads it: pip install " in sentence
    assert sentence.endswith(install)


def test_a_format_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = save_with_method(tmp_path, "modelopt")
    with pytest.raises(UnsupportedModel, match="'modelopt' quantisation, which transformers does not read; use the un"):
        Engine.load(ModelSpec(model=str(folder), device="cpu"))


def test_quantised_weights_are_not_quantised_again_nor_compiled(tmp_path: Path) -> None:
    folder = save_fp8(tmp_path)
    with pytest.raises(InvalidInput, match="'fp8' quantisation, so it cannot be quantised to 4bit; leave"):
        Engine.load(ModelSpec(model=str(folder), device="cpu", quantization="4bit"))
    with pytest.raises(InvalidInput, match="'fp8' quantisation, and compile does not take quantised weights"):
        Engine.load(ModelSpec(model=str(folder), device="cpu", compile=True))


def test_where_a_config_states_the_method() -> None:
    assert quantisation({"model_type": "llava"}) is None
    assert quantisation({"text_config": {"quantization_config": {"quant_method": "fp8"}}}) == "fp8"
    assert quantisation({"quantization_config": {"load_in_8bit": True}}) == "bitsandbytes"
    assert quantisation({"quantization_config": {"bits": 4}}) == "unknown"

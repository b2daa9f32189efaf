"""Test the list of models to start with."""

import json

import pytest

from tests.conftest import Tops
from tests.support.published_layouts import FILES, PublishedLayout
from tops_engine.curated_models import curated_model, curated_models
from tops_engine.families import FAMILIES
from tops_engine.settings import DEFAULT_MODEL

LAYOUTS = {layout.checkpoints[0]: layout for layout in map(PublishedLayout.read, FILES)}


def test_it_begins_small_and_has_the_default_and_captioners() -> None:
    names = [model.name for model in curated_models()]
    assert names[0].endswith("SmolVLM-256M-Instruct")
    assert {DEFAULT_MODEL, "Qwen/Qwen3-VL-2B-Instruct", "fancyfeast/llama-joycaption-beta-one-hf-llava"} <= set(names)
    sizes = [model.download_gb for model in curated_models()]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) & {model.name for model in curated_models()}))
def test_sizes_are_those_of_the_published_weights(name: str) -> None:
    model, layout = curated_model(name), LAYOUTS[name]
    assert model is not None
    assert layout.config["model_type"] in FAMILIES
    weights = layout.weights()
    inexact = sum(weight.numel() for key, weight in weights.items() if not ("embed_tokens" in key or "lm_head" in key))
    exact = sum(weight.numel() for weight in weights.values()) - inexact
    assert model.download_gb == pytest.approx(2 * (exact + inexact) / 1e9, rel=0.01)
    expected = {"bfloat16": 2 * (exact + inexact), "8bit": 2 * exact + inexact, "4bit": 2 * exact + 0.56 * inexact}
    for precision, size in expected.items():
        assert model.memory_gb[precision] == pytest.approx(size / 1e9, rel=0.01)


def test_how_a_model_fits_is_said() -> None:
    model = curated_model("Qwen/Qwen3-VL-8B-Instruct")
    assert model is not None
    assert [model.fit(int(gigabytes * 1e9)) for gigabytes in (24, 16, 8.5, 8)] == [
        "fits", "fits as 8bit", "fits as 4bit", "too large here",
    ]  # fmt: skip


def test_the_command_lists_them(tops: Tops) -> None:
    found = json.loads(tops("models", "--json").out)
    assert found  # unchanged: the model types
    listed = tops("models").out
    assert "fancyfeast/llama-joycaption-beta-one-hf-llava" in listed
    assert "Models to start with" in listed

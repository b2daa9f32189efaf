"""Test vLLM's features of the language model with pruned pictures: compilation and LoRA adapters."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.integrations.vllm_tops.servers import OPTIONS, as_url, asking
from tests.integrations.vllm_tops.test_server import KEEP, QUESTIONS
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.mini import mini_path
from tops_engine.settings import Generation, ModelSpec, Pruning

pytestmark = pytest.mark.vllm

COMPILED = [option for option in OPTIONS if option != "--enforce-eager"]

RANK, ALPHA = 4, 8

LAYERS = "language_model.model.layers."


@pytest.fixture(scope="module")
def deltas() -> dict[str, tuple[Tensor, Tensor]]:
    """Return factors A [rank, in] and B [out, rank] for every linear layer of mini's language model, by weight name.

    They are large enough to change some of its answers.
    """
    generator = torch.Generator().manual_seed(0)
    return {
        name: (
            torch.randn(RANK, weight.shape[1], generator=generator) * weight.shape[1] ** -0.5,
            torch.randn(weight.shape[0], RANK, generator=generator) * 0.1,
        )
        for name, weight in load_file(mini_path() / "model.safetensors").items()
        if name.startswith(LAYERS) and weight.ndim == 2
    }


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, deltas: dict[str, tuple[Tensor, Tensor]]) -> Path:
    """Write the factors as peft's files."""
    folder = tmp_path_factory.mktemp("adapter")
    weights = {}
    for name, factors in deltas.items():
        module = name.replace(LAYERS, "model.language_model.layers.").removesuffix(".weight")
        for letter, factor in zip("AB", factors, strict=True):
            weights[f"base_model.model.{module}.lora_{letter}.weight"] = factor
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = sorted({name.split(".")[-2] for name in deltas})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": modules, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, deltas: dict[str, tuple[Tensor, Tensor]]) -> Engine:
    """Write mini with the adapter's product added to its weights."""
    folder = tmp_path_factory.mktemp("merged") / "mini"
    shutil.copytree(mini_path(), folder)
    weights = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
    for name, (a, b) in deltas.items():
        weights[name] += ALPHA / RANK * b @ a
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def server(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Serve mini pruned, with a compiled language model and an adapter that requests can choose."""
    from tests.integrations.vllm_tops.servers import TOPS, environment, serving

    lora = ["--enable-lora", "--lora-modules", f"adapted={adapter}"]
    logs = tmp_path_factory.mktemp("logs")
    # Compile again instead of using the cache of earlier servers.
    variables = environment(VLLM_CACHE_ROOT=str(logs / "cache"))
    with serving([([*TOPS, "serve", "mini", "--keep", KEEP, *COMPILED, *lora], variables)], logs) as (started,):
        yield started


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    sample = Image.open(mini_path().with_name("sample.jpg")).convert("RGB")
    return [sample, sample.rotate(90)]


def answers(engine: Engine, images: list[Image.Image]) -> list[str]:
    pruning = Pruning(keep=float(KEEP), stages="first")
    conversations = [[user_message(question, image)] for image in images for question in QUESTIONS]
    return [
        engine.chat(messages, pruning, Generation(max_tokens=24)).text.strip().rstrip("\ufffd")
        for messages in conversations
    ]


def served(server: Any, model: str, images: list[Image.Image]) -> list[str]:
    requests = [asking(question, as_url(image), model=model) for image in images for question in QUESTIONS]
    completions = [server.client.chat.completions.create(**request) for request in requests]
    return [completion.choices[0].message.content.strip().rstrip("\ufffd") for completion in completions]


def test_a_compiled_model_answers_as_the_engine(server: Any, images: list[Image.Image]) -> None:
    assert served(server, "mini", images) == answers(Engine.load(ModelSpec(model="mini", device="cpu")), images)


def test_an_adapter_answers_as_its_weights_merged(server: Any, images: list[Image.Image], merged: Engine) -> None:
    expected = answers(merged, images)
    assert served(server, "adapted", images) == expected
    assert served(server, "mini", images) != expected


def test_a_model_in_two_halves_answers_as_the_engine(images: list[Image.Image], tmp_path: Path) -> None:
    from tests.integrations.vllm_tops.servers import TOPS, environment, serving

    # In eager mode, vLLM's CPU build fails at the first request to a model in several parts, with and without TOPS.
    command = [*TOPS, "serve", "mini", "--keep", KEEP, "--pipeline-parallel-size", "2", *COMPILED]
    with serving([(command, environment())], tmp_path) as (server,):
        assert served(server, "mini", images) == answers(Engine.load(ModelSpec(model="mini", device="cpu")), images)

"""Test compiled steps: the same tokens, few compilations, freed memory, and clear errors if they are impossible."""

import gc
import importlib.util
import shutil
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch._dynamo.utils import counters

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.checkpoints_qwen import save_qwen3_vl
from tops_engine.conversation.messages import Message, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, MissingDependency
from tops_engine.generation import compiling, static
from tops_engine.settings import Generation, ModelSpec, Pruning

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (apt install g++)")

# What is compiled: what the layers of a span share, the layer, and the head.
FORMS = 3

GENERATION = Generation(max_tokens=12, temperature=1.2, seed=3)

CHECKPOINTS: dict[str, tuple[Callable[..., Path], str, dict[str, Any], str]] = {
    "llava-llama": (save_llava, "llama", {}, "sdpa"),
    "llava-mistral-sliding-eager": (save_llava, "mistral", {"sliding_window": 20}, "eager"),
    "qwen3-vl": (save_qwen3_vl, "qwen3", {}, "sdpa"),
}


@pytest.fixture(scope="module")
def conversations(picture: Picture) -> list[list[Message]]:
    wide, tall = picture(110, 70, 1), picture(60, 90, 2)
    return [
        [user_message("What is shown in this picture?", wide)],
        [user_message("Compare these two.", wide, tall)],
        [user_message("Hello")],
    ]


def engines(folder: Path, attention: str = "sdpa") -> tuple[Engine, Engine]:
    """Return a plain and a compiled engine in float64, where another order of sums cannot change a token."""
    loaded = [
        Engine.load(ModelSpec(model=str(folder), device="cpu", attention=attention, compile=compile))
        for compile in (False, True)
    ]
    for engine in loaded:
        engine.family.model.generation_config.eos_token_id = []
        engine.family.model.double()
    return loaded[0], loaded[1]


@needs_compiler
@pytest.mark.parametrize(
    "name",
    [
        "llava-llama",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("llava-mistral-sliding-eager", "qwen3-vl")),
    ],
)
def test_compiled_answers_are_those_of_the_plain_loop(
    tmp_path: Path, conversations: list[list[Message]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check answers for every pruning and any capacities of layers, with one compilation."""
    monkeypatch.setattr(static, "GRAIN", 8)
    monkeypatch.setattr(static, "FIRST_ROOM", 3)
    save, kind, options, attention = CHECKPOINTS[name]
    plain, compiled = engines(save(tmp_path, kind, **options), attention)
    counters.clear()
    for keep in (1.0, 0.6, 0.3):
        for messages in conversations:
            arguments: Any = messages, Pruning(keep=keep), GENERATION
            assert compiled.chat(*arguments).token_ids == plain.chat(*arguments).token_ids
    assert counters["stats"]["unique_graphs"] <= FORMS


@needs_compiler
@pytest.mark.full  # test_static.py compares batches, and the test above counts compilations
def test_batches_are_compiled_once_for_all_sizes(llava_folder: Path, conversations: list[list[Message]]) -> None:
    plain, compiled = engines(llava_folder)
    counters.clear()
    for batch in (conversations, conversations[:2], [*conversations, *conversations]):
        together = compiled.batch(batch, Pruning(keep=0.4), GENERATION)
        expected = plain.batch(batch, Pruning(keep=0.4), GENERATION)
        assert [answer.token_ids for answer in together] == [answer.token_ids for answer in expected]
    assert counters["stats"]["unique_graphs"] <= FORMS + 1


@needs_compiler
def test_threads_share_what_is_compiled_and_nothing_outlives_the_model(
    llava_folder: Path, conversations: list[list[Message]]
) -> None:
    plain, compiled = engines(llava_folder)
    expected = [plain.chat(messages, Pruning(keep=0.4), GENERATION).token_ids for messages in conversations]
    counters.clear()
    with ThreadPoolExecutor(3) as threads:
        chats = [threads.submit(compiled.chat, messages, Pruning(keep=0.4), GENERATION) for messages in conversations]
        assert [chat.result().token_ids for chat in chats] == expected
    assert counters["stats"]["unique_graphs"] <= FORMS

    num_graphs = counters["stats"]["unique_graphs"]
    weights = [weakref.ref(weight) for weight in compiled.family.model.parameters()]
    compiled.unload()
    gc.collect()
    assert all(weight() is None for weight in weights)

    compiled.family.model.double().generation_config.eos_token_id = []
    assert compiled.chat(conversations[0], Pruning(keep=0.4), GENERATION).token_ids == expected[0]
    assert counters["stats"]["unique_graphs"] == num_graphs, "a model that comes back is compiled already"


@pytest.mark.parametrize(
    ("device", "missing", "error", "says"),
    [
        ("mps", "", InvalidInput, "CUDA and the CPU"),
        ("cpu", "g++", MissingDependency, "apt install g"),
        ("cuda", "triton", MissingDependency, "pip install triton"),
    ],
)
def test_what_is_missing_is_named(
    device: str, missing: str, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(error, match=says):
        compiling.fused(abs, device)

"""Test static steps on a GPU; without one, test that they use no data of the host."""

import gc
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from tests.conftest import Picture
from tests.support.checkpoints import text_config
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.families import Decoder
from tops_engine.generation import sampling, static
from tops_engine.generation.run import Run
from tops_engine.generation.static import Layout, StaticStep, StepPool
from tops_engine.settings import Generation, ModelSpec, Pruning

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class OnDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that refuses operations that read a value or use a tensor on another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            assert not isinstance(leaf, Tensor) or leaf.device.type == "meta", f"{func} on another device"
        return result


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_a_step_stays_on_its_device(kind: str, attention: str) -> None:
    """Use the meta device, which has no values to read and is distinct from the host."""
    options = {"sliding_window": 20} if kind == "mistral" else {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text_config(kind, 200, **options), attn_implementation=attention)
        tokens = torch.zeros(2, dtype=torch.int64)
    decoder = Decoder(model.model, model.lm_head)
    pool = StepPool(decoder, compiled=False, record=lambda function: function)
    step = StaticStep(pool, Layout(2, ((0, 3, 64), (3, decoder.num_layers, 32))))
    with torch.inference_mode(), OnDevice():  # type: ignore[no-untyped-call]
        logits = step(tokens, 5)
        drawn = sampling.draw(logits.softmax(dim=-1), [None, None])
    assert (logits.shape, drawn.shape) == ((2, 200), (2,))


# Everything below needs a GPU.


@pytest.fixture(scope="module")
def conversations(picture: Picture) -> list[list[Message]]:
    wide, tall = picture(110, 70, 1), picture(60, 90, 2)
    return [
        [user_message("What is shown in this picture?", wide)],
        [user_message("Compare these two.", wide, tall)],
        [user_message("Hello")],
    ]


@pytest.fixture(params=["recorded", "compiled"])
def engines(request: pytest.FixtureRequest, llava_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a plain engine and one with static steps, in float64: in half precision a token could change.

    ``recorded`` leaves out the compiler, so that errors of its numerics and of the recording can be told apart.
    """
    if request.param == "recorded":
        monkeypatch.setattr(static, "fused", lambda function, device_type: function)
    elif shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    loaded = [
        Engine.load(ModelSpec(model=str(llava_folder), device="cuda", compile=compile)) for compile in (False, True)
    ]
    for engine in loaded:
        engine.family.model.double()
        engine.family.model.generation_config.eos_token_id = []
    yield loaded
    for engine in loaded:
        engine.unload()


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


GENERATIONS = [
    Generation(max_tokens=24),
    Generation(max_tokens=24, temperature=1.2, seed=3),
    Generation(max_tokens=24, repetition_penalty=1.4, temperature=0.9, top_k=30, top_p=0.9, seed=4),
]


@pytest.mark.cuda
@on_a_gpu
@pytest.mark.parametrize("generation", GENERATIONS)
def test_cuda_answers_are_those_of_the_plain_loop(
    engines: Any, conversations: list[list[Message]], generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "GRAIN", 16)
    monkeypatch.setattr(static, "FIRST_ROOM", 8)
    plain, fast = engines
    for pruning in (Pruning(keep=1.0), Pruning(keep=0.4)):
        for batch in (conversations[:1], conversations):
            expected = [answer.token_ids for answer in plain.batch(batch, pruning, generation)]
            assert [answer.token_ids for answer in fast.batch(batch, pruning, generation)] == expected
            assert [answer.token_ids for answer in fast.batch(batch, pruning, generation)] == expected, "replayed"


@pytest.mark.cuda
@on_a_gpu
@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_cuda_step_does_not_wait(engines: Any, conversations: list[list[Message]], generation: Generation) -> None:
    """Check that computing and choosing a token do not wait; only reading it on the host does."""
    _, fast = engines
    read = [read_conversation(messages) for messages in conversations]
    run = Run(fast.family, "test", read, Pruning(keep=0.4), generation, steps=fast._step_pool(fast.family))
    run.start()
    run.step()  # records
    with torch.inference_mode(), waiting_is_an_error():
        for _ in range(5):
            run._writer.write()


@pytest.mark.cuda
@on_a_gpu
def test_cuda_streams_and_threads_do_not_mix(engines: Any, conversations: list[list[Message]]) -> None:
    plain, fast = engines
    generation = Generation(max_tokens=40)
    expected = [plain.chat(messages, Pruning(keep=0.4), generation).token_ids for messages in conversations]
    with ThreadPoolExecutor(4) as threads:
        chats = [threads.submit(fast.chat, messages, Pruning(keep=0.4), generation) for messages in 3 * conversations]
        assert [chat.result().token_ids for chat in chats] == 3 * expected
    streams = [fast.stream(messages, Pruning(keep=0.4), generation) for messages in conversations]
    for _ in range(5):
        for stream in streams:
            next(stream)
    assert [list(stream)[-1].token_ids for stream in streams] == expected


@pytest.mark.cuda
@on_a_gpu
def test_a_cuda_stream_goes_on_after_the_weights_left_and_came_back(
    engines: Any, conversations: list[list[Message]]
) -> None:
    plain, fast = engines
    generation = Generation(max_tokens=24)
    expected = plain.chat(conversations[0], Pruning(keep=0.4), generation).token_ids
    for leave in (fast.offload, fast.forget):
        stream = fast.stream(conversations[0], Pruning(keep=0.4), generation)
        for _ in range(4):
            next(stream)
        leave()
        taken = torch.empty(2**24, dtype=torch.uint8, device="cuda")  # so that the weights come back elsewhere
        assert list(stream)[-1].token_ids == expected
        del taken


@pytest.mark.cuda
@on_a_gpu
def test_cuda_memory_of_static_steps_comes_back(engines: Any, conversations: list[list[Message]]) -> None:
    _, fast = engines
    generation = Generation(max_tokens=24)
    fast.chat(conversations[0], Pruning(keep=0.4), generation)
    fast.forget()
    gc.collect()
    torch.cuda.empty_cache()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for keep in (1.0, 0.6, 0.4):
        fast.batch(conversations, Pruning(keep=keep), generation)
        fast.chat(conversations[0], Pruning(keep=keep), generation)
    assert torch.cuda.memory_allocated() > allocated
    fast.forget()
    gc.collect()
    torch.cuda.empty_cache()
    # What libraries keep as their work space may have grown.
    assert torch.cuda.memory_allocated() <= allocated + 2**26
    assert torch.cuda.memory_reserved() <= reserved + 2**27
    fast.unload()
    gc.collect()
    assert torch.cuda.memory_allocated() < allocated

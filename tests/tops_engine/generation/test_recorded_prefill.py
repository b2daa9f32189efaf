"""Test that recorded layers read a prompt as the plain loop does, and which prompts they are recorded for.

A tape stands in for the CUDA graph (``tests/support/tape.py``): it replays operations, so that an input that is not
copied into a buffer is noticed. One test needs a GPU.
"""

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_llava_next
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen3_vl
from tests.support.tape import Tape
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.families import Family
from tops_engine.generation import recorded_prefill, static
from tops_engine.generation.recorded_prefill import RecordedPrompts
from tops_engine.generation.run import Run
from tops_engine.generation.static import StepPool
from tops_engine.settings import Generation, ModelSpec, Pruning

CHECKPOINTS: dict[str, tuple[Callable[..., Path], str, dict[str, Any], str]] = {
    "llava": (save_llava, "llama", {}, "sdpa"),
    "next-sliding-eager": (save_llava_next, "mistral", {"sliding_window": 20}, "eager"),
    "qwen2.5-vl": (save_qwen2_5_vl, "qwen2", {}, "sdpa"),
    "qwen3-vl": (save_qwen3_vl, "qwen3", {}, "sdpa"),
}

PRUNED = Pruning(keep=0.4)
PRUNINGS = {"tops": PRUNED, "unpruned": Pruning(keep=1.0), "fastv": Pruning(keep=0.4, method="fastv")}


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_prefill, "RECORD_PREFILL", True)


@pytest.fixture
def family(llava_engine: Engine) -> Family:
    return llava_engine.family


def pool_for(family: Family, max_bytes: int = 2**24) -> StepPool:
    return StepPool(family.decoder, compiled=False, record=Tape(), max_idle_bytes=max_bytes)


def prompts_of(pool: StepPool) -> RecordedPrompts:
    assert pool.prompts is not None
    return pool.prompts


def num_recorded(pool: StepPool) -> int:
    return sum(segment is not None for segment in prompts_of(pool)._segments.values())


def read(
    family: Family, batch: Sequence[list[Message]], pruning: Pruning, pool: StepPool | None
) -> tuple[Tensor, list[list[int]]]:
    """Return the first logits and the tokens of each answer."""
    conversations = [read_conversation(messages) for messages in batch]
    run = Run(family, "test", conversations, pruning, Generation(max_tokens=4), steps=pool)
    run.start()
    while not run.done:
        run.step()
    return run._first_logits.clone(), [answer.token_ids for answer in run.answers()]


def ask(picture: Picture, seed: int, text: str = "What is shown?") -> list[list[Message]]:
    """Return a batch of one question; the pictures of all seeds have one size."""
    return [[user_message(text, picture(110, 70, seed))]]


#: The second layer of Qwen3-VL, where FastV prunes, still gets features of the tower.
CASES = [(name, pruning) for name in CHECKPOINTS for pruning in PRUNINGS if (name, pruning) != ("qwen3-vl", "fastv")]


@pytest.mark.parametrize(
    ("name", "pruning"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.full) for case in CASES[1:])],
    ids=[f"{name}-{pruning}" for name, pruning in CASES],
)
def test_other_prompts_of_the_shape_are_read_as_by_the_plain_loop(
    name: str, pruning: str, picture: Picture, tmp_path: Path
) -> None:
    save, kind, options, attention = CHECKPOINTS[name]
    folder = save(tmp_path, kind, **options)
    family = Engine.load(ModelSpec(model=str(folder), device="cpu", attention=attention)).family
    pool = pool_for(family)
    for seed in range(4):
        batch = ask(picture, seed)
        logits, tokens = read(family, batch, PRUNINGS[pruning], pool)
        plain_logits, plain_tokens = read(family, batch, PRUNINGS[pruning], None)
        assert torch.equal(logits, plain_logits)
        assert tokens == plain_tokens
        assert bool(num_recorded(pool)) == (seed > 0), "a shape is recorded when it comes back"
    tape: Any = pool.record
    steps = len(pool._steps)
    assert tape.num_recorded == num_recorded(pool) + steps, "and recorded once"


def test_what_was_read_before_does_not_change(family: Family, picture: Picture) -> None:
    pool = pool_for(family)
    first, second = ask(picture, 1), ask(picture, 2)
    read(family, first, PRUNED, pool)
    run = Run(family, "test", [read_conversation(first[0])], PRUNED, Generation(max_tokens=6), steps=None)
    run._steps = pool  # the prompt is read from the recording
    run.start()
    read(family, second, PRUNED, pool)
    while not run.done:
        run.step()
    plain = Run(family, "test", [read_conversation(first[0])], PRUNED, Generation(max_tokens=6))
    plain.start()
    while not plain.done:
        plain.step()
    assert run.answers()[0].token_ids == plain.answers()[0].token_ids


def test_other_lengths_and_batches_and_watched_layers_are_not_replayed(family: Family, picture: Picture) -> None:
    pool = pool_for(family)
    for text in ("Why?", "Where is it?", "Who else is shown in it?"):
        read(family, ask(picture, 1, text), PRUNED, pool)
    both = [*ask(picture, 1), *ask(picture, 2)]
    for _ in range(2):
        read(family, both, PRUNED, pool)
        read(family, ask(picture, 1), Pruning(keep=0.4, rectify="restore", method="divprune"), pool)
    assert num_recorded(pool) == 0


@pytest.mark.full
def test_layers_that_get_features_of_the_tower_are_not_recorded(picture: Picture, tmp_path: Path) -> None:
    folder = save_qwen3_vl(tmp_path, "qwen3")
    family = Engine.load(ModelSpec(model=str(folder), device="cpu")).family
    pool = pool_for(family)
    for _ in range(2):
        read(family, ask(picture, 1), PRUNED, pool)
    depth = len(family.tower.visual.deepstack_merger_list)  # type: ignore[attr-defined]
    assert all(shape.start >= depth for shape in prompts_of(pool)._segments)


def test_longer_prompts_run_as_they_are(family: Family, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_prefill, "MAX_TOKENS", 3)
    pool = pool_for(family)
    for _ in range(2):
        read(family, ask(picture, 1), PRUNED, pool)
    assert not prompts_of(pool)._segments


def test_the_shape_used_longest_ago_gives_way(
    family: Family, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, unpruned = pool_for(family), Pruning(method="none")
    for text in ("a", "a", "bb"):
        read(family, ask(picture, 1, text), unpruned, pool)
    shapes = list(prompts_of(pool)._segments)
    assert len(shapes) == 2
    monkeypatch.setattr(recorded_prefill, "MAX_SHAPES", 2)
    for text in ("a", "ccc"):
        read(family, ask(picture, 1, text), unpruned, pool)
    left = list(prompts_of(pool)._segments)
    assert (left[0], num_recorded(pool)) == (shapes[0], 1), "'bb' is gone: 'a' was used after it"
    assert left[1] not in shapes


def test_buffers_stay_within_their_bound_and_are_freed(family: Family, picture: Picture) -> None:
    pool, none = pool_for(family), pool_for(family, max_bytes=1000)
    for steps in (pool, pool, none, none):
        read(family, ask(picture, 1), PRUNED, steps)
    assert (num_recorded(none), prompts_of(none).num_bytes) == (0, 0)
    assert prompts_of(pool).num_bytes > 1000
    segments = [weakref.ref(segment) for segment in prompts_of(pool)._segments.values() if segment is not None]
    assert segments
    pool.clear()
    gc.collect()
    assert prompts_of(pool).num_bytes == 0
    assert not any(segment() for segment in segments)


def test_a_segment_that_fails_is_not_kept(family: Family, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_for(family)
    read(family, ask(picture, 1), PRUNED, pool)

    def fails(_: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(prompts_of(pool), "_record", fails)
    with pytest.raises(torch.OutOfMemoryError):
        read(family, ask(picture, 1), PRUNED, pool)
    monkeypatch.undo()
    monkeypatch.setattr(recorded_prefill, "RECORD_PREFILL", True)
    assert num_recorded(pool) == 0
    expected = read(family, ask(picture, 1), PRUNED, None)[1]
    assert [read(family, ask(picture, 1), PRUNED, pool)[1] for _ in range(3)] == 3 * [expected]


def test_an_engine_asks_again_after_its_weights_moved(
    llava_folder: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "fused", lambda function, device_type: function)
    monkeypatch.setattr(static, "recorder", lambda device: Tape())
    engine = Engine.load(ModelSpec(model=str(llava_folder), device="cpu", compile=True))
    plain = Engine.load(ModelSpec(model=str(llava_folder), device="cpu"))
    few = Generation(max_tokens=3)
    expected = [plain.chat(ask(picture, seed)[0], PRUNED, few).token_ids for seed in range(2)]
    for _ in range(2):
        assert [engine.chat(ask(picture, seed)[0], PRUNED, few).token_ids for seed in range(2)] == expected
        norm = engine.family.decoder.text_model.layers[0].input_layernorm
        norm.weight.data = norm.weight.data.clone()
    assert engine._pool is not None
    assert num_recorded(engine._pool)
    assert engine.cache_bytes > prompts_of(engine._pool).num_bytes > 0
    engine.offload()
    assert num_recorded(engine._pool) == 0


def test_it_is_off(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert StepPool(family.decoder, compiled=False, record=Tape()).prompts is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pruning", [PRUNED, Pruning(keep=1.0)], ids=str)
def test_a_cuda_graph_reads_prompts_as_the_plain_loop(llava_folder: Path, picture: Picture, pruning: Pruning) -> None:
    """Compare in float64, where another order of sums cannot change a token."""
    engine = Engine.load(ModelSpec(model=str(llava_folder), device="cuda"))
    engine.family.model.double()
    engine.family.model.generation_config.eos_token_id = []
    pool = StepPool(engine.family.decoder, compiled=False)
    for seed in range(4):
        logits, tokens = read(engine.family, ask(picture, seed), pruning, pool)
        plain_logits, plain_tokens = read(engine.family, ask(picture, seed), pruning, None)
        torch.testing.assert_close(logits, plain_logits)
        assert tokens == plain_tokens
    assert num_recorded(pool)
    allocated = torch.cuda.memory_allocated()
    pool.clear()
    gc.collect()
    assert torch.cuda.memory_allocated() < allocated
    engine.unload()

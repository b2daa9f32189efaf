"""Test that decoding on static buffers gives the plain loop's answers, also when a step is replayed.

The steps run transformers' layers uncompiled (test_compiled.py compiles them), recorded on a tape, not a CUDA graph.
"""

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_llava_next
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen3_vl
from tests.support.tape import Tape
from tests.support.usage import token_counts
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.families import Family
from tops_engine.generation import static
from tops_engine.generation.attention import attend
from tops_engine.generation.run import Run
from tops_engine.generation.sampling import draw
from tops_engine.generation.static import StepPool
from tops_engine.settings import Generation, ModelSpec, Pruning

CHECKPOINTS: dict[str, tuple[Callable[..., Path], str, dict[str, Any], str]] = {
    "llava": (save_llava, "llama", {}, "sdpa"),
    "next-sliding-eager": (save_llava_next, "mistral", {"sliding_window": 20}, "eager"),
    "qwen2.5-vl": (save_qwen2_5_vl, "qwen2", {}, "sdpa"),
    "qwen3-vl": (save_qwen3_vl, "qwen3", {}, "sdpa"),
}


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=str)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Load the family in float64, where another order of sums cannot change a token."""
    save, kind, options, attention = CHECKPOINTS[request.param]
    folder = save(tmp_path_factory.mktemp("checkpoint"), kind, **options)
    loaded = Engine.load(ModelSpec(model=str(folder), device="cpu", attention=attention)).family
    loaded.model.double()
    return loaded


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make buffers small, so that layers differ in capacity and answers outgrow their buffers."""
    monkeypatch.setattr(static, "GRAIN", 4)
    monkeypatch.setattr(static, "FIRST_ROOM", 3)


@pytest.fixture(scope="module")
def conversations(picture: Picture) -> list[list[Message]]:
    wide, tall = picture(110, 70, 1), picture(60, 90, 2)
    return [
        [user_message("What is shown in this picture?", wide)],
        [user_message("Compare these two.", wide, tall)],
        [user_message("Hello")],
    ]


def pool_for(family: Family, ahead: bool = False) -> StepPool:
    pool = StepPool(family.decoder, compiled=False, record=Tape())
    pool.runs_ahead = ahead
    return pool


def answers(
    family: Family,
    conversations: Sequence[list[Message]],
    pruning: Pruning,
    generation: Generation,
    steps: StepPool | None = None,
) -> list[Answer]:
    read = [read_conversation(messages) for messages in conversations]
    run = Run(family, "test", read, pruning, generation, steps=steps)
    pieces = [list(new) for new in run.start()]
    while not run.done:
        for texts, new in zip(pieces, run.step(), strict=True):
            texts += new
    written = run.answers()
    assert ["".join(map(str, texts)) for texts in pieces] == [answer.text for answer in written]
    return written


def same(answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert answer.token_ids == other.token_ids
        assert (answer.text, answer.finish_reason) == (other.text, other.finish_reason)
        assert (token_counts(answer), answer.flops) == (token_counts(other), other.flops)
        assert answer.kv_cache_bytes == other.kv_cache_bytes


GENERATIONS = {
    "greedy": Generation(max_tokens=12),
    "one token": Generation(max_tokens=1),
    "two tokens": Generation(max_tokens=2),
    "repetition penalty": Generation(max_tokens=12, repetition_penalty=1.5),
    "sampling": Generation(max_tokens=12, temperature=1.3, seed=5),
    "top-k and top-p": Generation(max_tokens=12, temperature=0.9, top_k=30, top_p=0.9, seed=7),
}


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize(
    "name",
    [
        # The others show answers of one and of several tokens, and sampling.
        pytest.param(name, marks=pytest.mark.full if name in ("two tokens", "top-k and top-p") else ())
        for name in GENERATIONS
    ],
)
def test_every_generation_is_that_of_the_plain_loop(
    family: Family, conversations: list[list[Message]], name: str, ahead: bool
) -> None:
    pool = pool_for(family, ahead)
    for batch, pruning in ((conversations[:1], Pruning(keep=1.0)), (conversations, Pruning(keep=0.4))):
        arguments = family, batch, pruning, GENERATIONS[name]
        same(answers(*arguments, pool), answers(*arguments))


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
def test_stop_strings_and_ends_are_those_of_the_plain_loop(
    family: Family, conversations: list[list[Message]], ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruning = Pruning(keep=0.4)
    free = answers(family, conversations, pruning, Generation(max_tokens=12))
    stop = Generation(max_tokens=12, stop=(free[0].text[4:6],))
    plain = answers(family, conversations, pruning, stop)
    assert plain[0].finish_reason == "stop"
    same(answers(family, conversations, pruning, stop, pool_for(family, ahead)), plain)

    monkeypatch.setattr(family.model.generation_config, "eos_token_id", [free[0].token_ids[5], free[1].token_ids[9]])
    plain = answers(family, conversations, pruning, Generation(max_tokens=12))
    assert plain[0].finish_reason == "stop"
    same(answers(family, conversations, pruning, Generation(max_tokens=12), pool_for(family, ahead)), plain)


def test_the_likeliest_of_other_tokens_is_read_after_a_static_answer(
    family: Family, conversations: list[list[Message]]
) -> None:
    read = [read_conversation(messages) for messages in conversations]
    references = [[5, 9, 120, 31, 40, 17, 18, 19], [7, 8], [11]]
    scores = []
    for steps in (None, pool_for(family), pool_for(family, ahead=True)):
        run = Run(family, "test", read, Pruning(keep=0.4), Generation(max_tokens=9), steps=steps)
        run.start()
        while not run.done:
            run.step()
        scores.append(run.scores(references))
    for others in scores[1:]:
        for (loss, first), (expected_loss, expected_first) in zip(others, scores[0], strict=True):
            assert loss == pytest.approx(expected_loss, abs=1e-9)
            torch.testing.assert_close(first, expected_first)


def test_a_step_is_recorded_once_a_layout_and_then_replayed(family: Family, conversations: list[list[Message]]) -> None:
    tape = Tape()
    pool = StepPool(family.decoder, compiled=False, record=tape)
    arguments = family, conversations[:1], Pruning(keep=0.4), Generation(max_tokens=12)
    (first,) = answers(*arguments, pool)
    num_recorded = tape.num_recorded
    assert 1 < num_recorded < 5, "11 tokens do not fit into the first buffers"
    assert tape.num_replayed == len(first.token_ids) - 1
    (again,) = answers(*arguments, pool)
    assert tape.num_recorded == num_recorded
    same([again], [first])


# From here on with one checkpoint.


@pytest.fixture
def engine(llava_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Return an engine with ``compile=True`` whose steps are recorded on a tape, without a compiler."""
    monkeypatch.setattr(static, "fused", lambda function, device_type: function)
    monkeypatch.setattr(static, "recorder", lambda device: Tape())
    loaded = Engine.load(ModelSpec(model=str(llava_folder), device="cpu", compile=True))
    loaded.family.model.generation_config.eos_token_id = []
    return loaded


@pytest.fixture
def plain(llava_folder: Path) -> Engine:
    loaded = Engine.load(ModelSpec(model=str(llava_folder), device="cpu"))
    loaded.family.model.generation_config.eos_token_id = []
    return loaded


LONG = Generation(max_tokens=24)


def pool_of(engine: Engine) -> StepPool:
    assert engine._pool is not None
    return engine._pool


def test_streams_side_by_side_do_not_mix(engine: Engine, plain: Engine, conversations: list[list[Message]]) -> None:
    expected = [plain.chat(messages, Pruning(keep=0.4), LONG) for messages in (*conversations, conversations[0])]
    streams = [engine.stream(messages, Pruning(keep=0.4), LONG) for messages in (*conversations, conversations[0])]
    finished: dict[int, Answer] = {}
    while len(finished) < len(streams):
        for index, stream in enumerate(streams):
            if isinstance(piece := next(stream, ""), Answer):
                finished[index] = piece
    assert [finished[index].token_ids for index in range(len(streams))] == [answer.token_ids for answer in expected]


def test_threads_share_the_steps(engine: Engine, plain: Engine, conversations: list[list[Message]]) -> None:
    expected = [plain.chat(messages, Pruning(keep=0.4), LONG) for messages in conversations]
    with ThreadPoolExecutor(4) as threads:
        chats = [threads.submit(engine.chat, messages, Pruning(keep=0.4), LONG) for messages in 3 * conversations]
        assert [chat.result().token_ids for chat in chats] == 3 * [answer.token_ids for answer in expected]


def test_a_stream_goes_on_after_the_weights_left_and_came_back(
    engine: Engine, plain: Engine, conversations: list[list[Message]]
) -> None:
    expected = plain.chat(conversations[0], Pruning(keep=0.4), LONG)
    for leave in (engine.offload, engine.unload, engine.forget):
        stream = engine.stream(conversations[0], Pruning(keep=0.4), LONG)
        for _ in range(3):
            next(stream)
        leave()
        *_, answer = stream
        assert isinstance(answer, Answer)
        assert answer.token_ids == expected.token_ids


def test_moved_weights_are_recorded_anew(engine: Engine, conversations: list[list[Message]]) -> None:
    before = engine.chat(conversations[0], Pruning(keep=0.4), LONG)
    tape: Any = pool_of(engine).record
    num_recorded = tape.num_recorded
    norm = engine.family.decoder.text_model.norm
    kept, norm.weight.data = norm.weight.data, norm.weight.data.clone()
    assert engine.chat(conversations[0], Pruning(keep=0.4), LONG).token_ids == before.token_ids
    assert tape.num_recorded == 2 * num_recorded
    del kept


@pytest.mark.parametrize("how", ["chat", "batch", "stream", "scored"])
def test_cancelled_abandoned_and_other_answers_leave_their_buffers_to_the_next(
    engine: Engine, conversations: list[list[Message]], how: str
) -> None:
    cancel = threading.Event()

    def ask() -> None:
        if how == "chat":
            cancel.set()
            assert engine.chat(conversations[0], generation=LONG, cancel=cancel).finish_reason == "cancelled"
        elif how == "batch":
            engine.batch(conversations[:1], generation=LONG)
        elif how == "stream":
            stream = engine.stream(conversations[0], generation=LONG)
            next(stream)
        else:
            engine.scored_batch(conversations[:1], generation=LONG)

    ask()
    num_steps = len(pool_of(engine)._steps)
    for _ in range(3):
        ask()
    assert len(pool_of(engine)._steps) == num_steps


@pytest.mark.parametrize("how", ["forget", "offload", "unload"])
def test_buffers_go_with_what_else_was_kept(engine: Engine, conversations: list[list[Message]], how: str) -> None:
    engine.chat(conversations[0], generation=LONG)
    buffers = [weakref.ref(keys) for step, _ in pool_of(engine)._steps for keys in step.keys]
    assert buffers
    getattr(engine, how)()
    gc.collect()
    assert all(buffer() is None for buffer in buffers)
    assert engine.chat(conversations[0], generation=LONG).token_ids


def test_idle_buffers_are_bounded(engine: Engine, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes() -> list[int]:
        return [step.num_bytes for step, _ in pool_of(engine)._steps]

    engine.chat([user_message("Why?", picture())], generation=Generation(max_tokens=2))
    monkeypatch.setattr(pool_of(engine), "_max_idle_bytes", 3 * sizes()[0])
    for length in range(1, 60, 6):
        engine.chat([user_message("?" * length, picture())], generation=Generation(max_tokens=2))
        assert sum(sizes()[:-1]) <= 3 * sizes()[0] + sizes()[-1]
    assert len(sizes()) < 5


def test_what_was_kept_of_a_prompt_is_left_alone(engine: Engine, picture: Picture) -> None:
    """Ask about the same picture repeatedly, with long answers in between; the answers do not change."""
    questions = ["What is shown?", "What is shown, and where?", "Why?", "What is shown?"]
    image = picture(110, 70)
    cold = []
    for question in questions:
        engine.forget()
        cold.append(engine.chat([user_message(question, image)], Pruning(keep=0.4), LONG))
    engine.forget()
    warm = [engine.chat([user_message(question, image)], Pruning(keep=0.4), LONG) for question in questions]
    assert [answer.token_ids for answer in warm] == [answer.token_ids for answer in cold]
    assert [answer.usage.reused_tokens > 0 for answer in warm] == [False, True, True, True]


def test_answers_by_a_schema_are_those_of_the_plain_loop(
    engine: Engine, plain: Engine, conversations: list[list[Message]]
) -> None:
    pytest.importorskip("llguidance")
    generation = Generation(max_tokens=40, json_schema='{"type": "object", "properties": {"a": {"type": "integer"}}}')
    expected = plain.chat(conversations[0], Pruning(keep=0.4), generation)
    engine.count_tokens(conversations[0])
    engine._step_pool(engine.family)
    pool_of(engine).runs_ahead = True
    answer = engine.chat(conversations[0], Pruning(keep=0.4), generation)
    assert (answer.token_ids, answer.finish_reason) == (expected.token_ids, expected.finish_reason)


def test_buffers_full_of_rubbish_do_not_reach_an_answer(engine: Engine, conversations: list[list[Message]]) -> None:
    expected = engine.chat(conversations[0], generation=LONG)
    with torch.inference_mode():
        for step, _ in pool_of(engine)._steps:
            for buffer in (*step.keys, *step.values):
                buffer.fill_(float("nan"))
    assert engine.chat(conversations[0], generation=LONG).token_ids == expected.token_ids


def test_a_token_is_drawn_as_multinomial_draws_it() -> None:
    for seed in range(20):
        probabilities = torch.randn(3, 97, generator=torch.Generator().manual_seed(seed)).mul(3).softmax(dim=-1)
        rows = zip(probabilities, [torch.Generator().manual_seed(seed + row) for row in range(3)], strict=True)
        expected = torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
        drawn = draw(probabilities, [torch.Generator().manual_seed(seed + row) for row in range(3)])
        assert torch.equal(drawn, expected)


def test_quantised_weights_are_not_compiled() -> None:
    with pytest.raises(InvalidInput, match="compile does not take quantised weights"):
        ModelSpec(model="mini", compile=True, quantization="4bit")


def test_the_models_own_attention_is_back_after_a_step(
    engine: Engine, conversations: list[list[Message]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check a step that ends and one that fails."""
    engine.chat(conversations[0], generation=LONG)
    config = engine.family.decoder.text_model.config
    assert config._attn_implementation == "sdpa"
    engine.forget()

    def fail(*_: Any) -> None:
        raise RuntimeError("on the way")

    monkeypatch.setattr(pool_of(engine), "finish", fail)
    with pytest.raises(RuntimeError, match="on the way"):
        engine.chat(conversations[0], generation=LONG)
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str
)
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_one_tokens_attention_is_softmax_over_what_it_sees(
    num_kv_heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(num_kv_heads)
    query, slots, groups = torch.randn(3, 6, 1, 8, dtype=dtype), 11, 6 // num_kv_heads
    key, value = torch.randn(2, 3, num_kv_heads, slots, 8, dtype=dtype)
    mask = torch.zeros(3, 1, 1, slots, dtype=dtype)
    for row, visible in enumerate((4, 11, 1)):
        mask[row, ..., visible:] = torch.finfo(dtype).min
    states, weights = attend(None, query, key, value, mask, 0.3)
    keys, exact_values = (shared.double().repeat_interleave(groups, dim=1) for shared in (key, value))
    chances = (query.double() @ keys.transpose(2, 3) * 0.3 + mask.double()).softmax(dim=-1)
    expected = (chances @ exact_values).transpose(1, 2)
    assert states.dtype == dtype
    torch.testing.assert_close(states.double(), expected, atol=tolerance, rtol=tolerance)
    assert weights is None

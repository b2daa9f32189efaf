"""Test the engine's public interface: streaming, stopping, sharing, memory, and recovery from errors."""

import base64
import io
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message, read_conversation, user_message, video_message
from tops_engine.engine import Engine, shared_engine
from tops_engine.errors import (
    ContextLengthError,
    InvalidImage,
    InvalidInput,
    OutOfMemory,
    UnsupportedModel,
)
from tops_engine.settings import Generation, ModelSpec, Pruning

LONG = Generation(max_tokens=1500)


@pytest.fixture
def messages(picture: Picture) -> list[Message]:
    return [user_message("What is shown in this picture?", picture(80, 60))]


@pytest.fixture
def endless_engine(llava_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Return an engine whose model has no end token."""
    monkeypatch.setattr(llava_engine.family.model.generation_config, "eos_token_id", [10**6])
    return llava_engine


def test_a_picture_is_the_same_from_every_source(llava_engine: Engine, picture: Picture, tmp_path: Path) -> None:
    image = picture(60, 40)
    image.save(tmp_path / "photo.png")
    data = (tmp_path / "photo.png").read_bytes()
    sources: list[Any] = [image, tmp_path / "photo.png", str(tmp_path / "photo.png"), data, io.BytesIO(data)]
    sources += [np.asarray(image), np.asarray(image) / 255, base64.b64encode(data).decode()]
    conversations = [[user_message("What?", source)] for source in sources]
    answers = llava_engine.batch(conversations, generation=Generation(max_tokens=4))
    assert len({tuple(answer.token_ids) for answer in answers}) == 1
    assert {answer.usage.visual_tokens for answer in answers} == {16}


def test_streamed_pieces_are_the_answer(llava_engine: Engine, messages: list[Message]) -> None:
    *pieces, answer = llava_engine.stream(messages, Pruning(keep=0.5), Generation(max_tokens=20))
    assert isinstance(answer, Answer)
    assert "".join(map(str, pieces)) == answer.text
    assert len(pieces) > 1
    assert answer.text == llava_engine.chat(messages, Pruning(keep=0.5), Generation(max_tokens=20)).text


def test_max_tokens_ends_an_answer(endless_engine: Engine, messages: list[Message]) -> None:
    answer = endless_engine.chat(messages, generation=Generation(max_tokens=5))
    assert answer.finish_reason == "length"
    assert answer.usage.completion_tokens == len(answer.token_ids) == 5


def test_any_end_token_of_the_generation_config_ends_an_answer(
    llava_engine: Engine, messages: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = llava_engine.chat(messages, generation=Generation(max_tokens=12))
    end = free.token_ids[4]
    monkeypatch.setattr(llava_engine.family.model.generation_config, "eos_token_id", [10**6, end])
    answer = llava_engine.chat(messages, generation=Generation(max_tokens=12))
    assert answer.finish_reason == "stop"
    assert answer.token_ids == free.token_ids[: free.token_ids.index(end) + 1]


def test_a_stop_string_ends_an_answer_before_it(endless_engine: Engine, messages: list[Message]) -> None:
    text = endless_engine.chat(messages, generation=Generation(max_tokens=30)).text
    stop = text[5:8]
    answer = endless_engine.chat(messages, generation=Generation(max_tokens=30, stop=(stop,)))
    assert answer.text == text[: text.index(stop)]
    assert answer.finish_reason == "stop"


def test_sampling_repeats_with_its_seed_and_varies_without(endless_engine: Engine, messages: list[Message]) -> None:
    def sample(**options: Any) -> list[int]:
        generation = Generation(max_tokens=20, temperature=1.5, top_p=0.95, top_k=50, **options)
        return endless_engine.chat(messages, generation=generation).token_ids

    assert sample(seed=1) == sample(seed=1)
    assert sample(seed=1) != sample(seed=2)
    assert sample() != sample()


def test_a_sampled_answer_does_not_depend_on_its_batch(endless_engine: Engine, messages: list[Message]) -> None:
    generation = Generation(max_tokens=12, temperature=1.0, seed=3)
    alone = endless_engine.chat(messages, generation=generation)
    together = endless_engine.batch([[user_message("Hello")], messages], generation=generation)
    assert together[1].token_ids == alone.token_ids


def test_tiny_temperature_and_top_k_1_are_greedy(endless_engine: Engine, messages: list[Message]) -> None:
    greedy = endless_engine.chat(messages, generation=Generation(max_tokens=12)).token_ids
    choices: list[dict[str, Any]] = [
        {"temperature": 1e-4},
        {"temperature": 1, "top_k": 1},
        {"temperature": 1, "top_p": 1e-6},
    ]
    for options in choices:
        generation = Generation(max_tokens=12, **options)
        assert endless_engine.chat(messages, generation=generation).token_ids == greedy


def test_another_thread_stops_an_answer_within_one_token(endless_engine: Engine, messages: list[Message]) -> None:
    cancel, tokens_after = threading.Event(), 10**6
    stream = endless_engine.stream(messages, generation=LONG, cancel=cancel)
    for number, piece in enumerate(stream, start=1):
        if isinstance(piece, Answer):
            assert piece.finish_reason == "cancelled"
            tokens_after = piece.usage.completion_tokens - 3
        if number == 3:
            thread = threading.Thread(target=cancel.set)
            thread.start()
            thread.join()
    assert tokens_after < 30, "pieces may hold several tokens, but not many"


def test_an_abandoned_stream_blocks_nobody(endless_engine: Engine, messages: list[Message]) -> None:
    abandoned = endless_engine.stream(messages, generation=LONG)
    next(abandoned)
    assert endless_engine.chat(messages, generation=Generation(max_tokens=2)).token_ids
    del abandoned


def test_streams_advance_side_by_side_without_mixing(endless_engine: Engine, messages: list[Message]) -> None:
    generation = Generation(max_tokens=15)
    other = [user_message("Hello")]
    expected = [endless_engine.chat(m, generation=generation).text for m in (messages, other)]
    streams = [endless_engine.stream(m, generation=generation) for m in (messages, other)]
    texts, live = ["", ""], {0, 1}
    while live:
        for index in sorted(live):
            piece = next(streams[index])
            if isinstance(piece, Answer):
                live.discard(index)
            else:
                texts[index] += str(piece)
    assert texts == expected


def test_threads_get_the_answers_they_asked_for(llava_engine: Engine, picture: Picture) -> None:
    generation = Generation(max_tokens=8)
    asked = [[user_message(f"Question {i}", picture(60 + 9 * i, 70, i))] for i in range(6)]
    expected = [llava_engine.chat(m, Pruning(keep=0.5), generation).token_ids for m in asked]
    answers: dict[int, list[int]] = {}

    def work(index: int) -> None:
        answers[index] = llava_engine.chat(asked[index], Pruning(keep=0.5), generation).token_ids

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[index] for index in range(len(asked))] == expected


def test_equal_specs_share_one_engine(llava_folder: Path) -> None:
    spec = ModelSpec(model=str(llava_folder), device="cpu")
    assert shared_engine(spec) is shared_engine(ModelSpec(model=str(llava_folder), device="cpu"))
    assert shared_engine(spec) is not shared_engine(ModelSpec(model=str(llava_folder), device="cpu", dtype="bfloat16"))
    assert not shared_engine(spec).is_loaded


def test_an_unloaded_engine_comes_back_by_itself(llava_folder: Path, messages: list[Message]) -> None:
    engine = Engine.load(ModelSpec(model=str(llava_folder), device="cpu"))
    before = engine.chat(messages, generation=Generation(max_tokens=5))
    engine.unload()
    assert not engine.is_loaded
    assert engine.chat(messages, generation=Generation(max_tokens=5)).token_ids == before.token_ids
    assert engine.is_loaded
    engine.offload()
    assert engine.chat(messages, generation=Generation(max_tokens=5)).token_ids == before.token_ids


def test_a_stream_survives_an_unload_in_its_middle(llava_folder: Path, messages: list[Message]) -> None:
    engine = Engine.load(ModelSpec(model=str(llava_folder), device="cpu"))
    expected = engine.chat(messages, generation=Generation(max_tokens=10)).text
    stream = engine.stream(messages, generation=Generation(max_tokens=10))
    first = next(stream)
    engine.unload()
    rest = [piece for piece in stream if isinstance(piece, str)]
    assert "".join([str(first), *rest]) == expected


def test_bfloat16_runs(llava_folder: Path, messages: list[Message]) -> None:
    engine = Engine.load(ModelSpec(model=str(llava_folder), device="cpu", dtype="bfloat16"))
    answer = engine.chat(messages, Pruning(keep=0.5), Generation(max_tokens=5))
    assert engine.family.decoder.dtype == torch.bfloat16
    assert answer.usage.layer_average == 8


def test_the_report_adds_up(llava_engine: Engine, messages: list[Message]) -> None:
    answer = llava_engine.chat(messages, Pruning(keep=0.5), Generation(max_tokens=6))
    usage, timings = answer.usage, answer.timings
    assert [(stage.layer, stage.visual_tokens) for stage in usage.stages] == [(0, [16]), (3, [4]), (6, [2])]
    assert usage.layer_average == (3 * 16 + 3 * 4 + 2 * 2) / 8 == 8
    assert usage.kept_fraction == 0.5
    assert timings.total >= timings.vision + timings.selection + timings.prefill + timings.decode
    assert min(timings.prepare, timings.vision, timings.selection, timings.prefill, timings.decode) > 0
    assert answer.pruning["alpha"] == 0.5
    assert answer.pruning["positions"] == "contiguous"
    assert answer.model_dump_json().startswith('{"text"')


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_scores_are_the_models_own_cross_entropy_and_first_distribution(
    llava_engine: Engine, messages: list[Message], picture: Picture, keep: float
) -> None:
    references = [[5, 9, 200, 31], [7]]
    conversations: list[list[Message]] = [messages, [user_message("Hello", picture(56, 56, 4))]]
    pruning = Pruning(method="random", keep=keep, positions="original")
    scored = llava_engine.scored_batch(conversations, pruning, Generation(max_tokens=6), references)

    for conversation, reference, score in zip(conversations, references, scored, strict=True):
        logits = reference_logits(llava_engine, conversation, reference, pruning)
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(reference))
        assert score.loss == pytest.approx(float(expected), abs=1e-4)
        torch.testing.assert_close(score.first_token, logits[0].log_softmax(dim=-1), atol=1e-4, rtol=1e-4)
        assert score.answer.token_ids == llava_engine.chat(conversation, pruning, Generation(max_tokens=6)).token_ids


def reference_logits(
    engine: Engine, conversation: list[Message], reference: list[int], pruning: Pruning
) -> torch.Tensor:
    """Return the logits before each token of ``reference``, float32 [q, vocab].

    Transformers' own forward runs over the whole sequence and masks the columns of the tokens that were pruned before
    the language model.
    """
    family = engine.family
    prompt = family.prepare(read_conversation(conversation))
    (span,) = prompt.spans
    ids = torch.cat([prompt.input_ids, torch.tensor(reference)])[None]
    (kept,) = engine.chat(conversation, pruning, Generation(max_tokens=1)).token_map.stages[0][1]
    seen = torch.ones(ids.shape[1], dtype=torch.bool)
    seen[span.positions] = False
    seen[span.positions[kept]] = True
    mask = (torch.ones(ids.shape[1], ids.shape[1]).tril().bool() & seen) | torch.eye(ids.shape[1]).bool()
    with torch.inference_mode():
        positions = torch.arange(ids.shape[1])[None]
        output = family.model(input_ids=ids, attention_mask=mask[None, None], position_ids=positions, **prompt.pixels)
    return output.logits[0, len(prompt.input_ids) - 1 : -1].float()


def test_prompts_prepared_once_give_the_same_answers_and_scores(
    llava_engine: Engine, messages: list[Message], picture: Picture
) -> None:
    two_pictures: list[Message] = [user_message("Which?", picture(56, 56, 4), picture(90, 40, 5))]
    conversations: list[list[Message]] = [messages, two_pictures, [user_message("Hello")]]
    prepared = llava_engine.prepare(conversations)
    generation = Generation(max_tokens=5)
    for pruning in (Pruning(keep=0.5), Pruning(method="fastv", keep=0.5), Pruning(method="none")):
        apart = llava_engine.scored_batch(conversations, pruning, generation)
        shared = llava_engine.scored_batch(prepared, pruning, generation)
        assert [score.answer.token_ids for score in shared] == [score.answer.token_ids for score in apart]
        assert [score.loss for score in shared] == pytest.approx([score.loss for score in apart], abs=1e-6)
    assert shared[0].answer.timings.vision < apart[0].answer.timings.vision
    assert shared[0].answer.timings.prepare < apart[0].answer.timings.prepare


@pytest.mark.parametrize("references", [[], [[1]], [[1], []], [[1], [2], [3]]])
def test_references_that_do_not_fit_the_conversations_are_refused(
    llava_engine: Engine, messages: list[Message], references: list[list[int]]
) -> None:
    with pytest.raises(InvalidInput, match="references are the tokens of one answer to each conversation"):
        llava_engine.scored_batch([messages, messages], references=references)


def test_no_memory_is_one_clear_error_and_the_next_call_works(llava_engine: Engine, messages: list[Message]) -> None:
    layers = llava_engine.family.decoder.text_model.layers
    expected = llava_engine.chat(messages, generation=Generation(max_tokens=3)).token_ids
    hidden: list[weakref.ref[torch.Tensor]] = []

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    handles = [
        layers[2].register_forward_pre_hook(lambda _, args: hidden.append(weakref.ref(args[0]))),
        layers[4].register_forward_pre_hook(fail),
    ]
    with pytest.raises(OutOfMemory, match="ran out of memory; send fewer or smaller pictures") as caught:
        llava_engine.chat(messages)
    for handle in handles:
        handle.remove()
    assert [reference() for reference in hidden] == [None], f"{caught} keeps the request's tensors alive"
    assert llava_engine.chat(messages, generation=Generation(max_tokens=3)).token_ids == expected


def test_a_real_lack_of_main_memory_is_the_same_error(llava_engine: Engine, messages: list[Message]) -> None:
    def fail(*_: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    handle = llava_engine.family.decoder.text_model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemory):
        llava_engine.chat(messages)
    handle.remove()


def test_other_failures_inside_a_model_are_not_swallowed(llava_engine: Engine, messages: list[Message]) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("something else")

    handle = llava_engine.family.decoder.text_model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        llava_engine.chat(messages)
    handle.remove()
    assert llava_engine.chat(messages, generation=Generation(max_tokens=2)).text is not None


@pytest.fixture(scope="module")
def short_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Return an engine whose model has a context of 40 positions."""
    folder = save_llava(tmp_path_factory.mktemp("short"), max_position_embeddings=40)
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))
    engine.family.model.generation_config.eos_token_id = [10**6]
    return engine


def test_a_prompt_over_the_context_length_is_refused(short_engine: Engine) -> None:
    with pytest.raises(ContextLengthError, match="and the model has 40; shorten the text"):
        short_engine.chat([user_message("word " * 60)])


def test_pruning_makes_room_in_the_context(short_engine: Engine, picture: Picture) -> None:
    messages = [user_message("What is in them?", picture(seed=1), picture(seed=2))]
    with pytest.raises(ContextLengthError):
        short_engine.chat(messages, Pruning(keep=1.0))
    with pytest.raises(ContextLengthError):
        short_engine.chat(messages, Pruning(keep=0.2, positions="original"))
    assert short_engine.chat(messages, Pruning(keep=0.2)).text


def test_an_answer_ends_where_the_context_does(short_engine: Engine) -> None:
    answer = short_engine.chat([user_message("Hello")], generation=LONG)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 40


def test_a_placeholder_in_a_text_stays_text(llava_engine: Engine, picture: Picture) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": "<image>"}}}
    messages = [
        user_message("What is <image>?", picture()),
        {"role": "assistant", "content": "<image>?", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "<image>"},
    ]
    assert llava_engine.chat(messages, generation=Generation(max_tokens=1)).usage.input_tokens > 0
    spelled = user_message("What is < image>?", picture())
    assert llava_engine.chat(messages[:1]).text == llava_engine.chat([spelled]).text


def test_pictures_a_template_has_no_place_for_are_refused(
    llava_engine: Engine, messages: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_engine.family.processor, "chat_template", "USER: hello ASSISTANT:")
    with pytest.raises(InvalidInput, match=r"0 placeholders .* for 1 pictures"):
        llava_engine.chat(messages)


def test_a_conversation_the_template_refuses_says_why(
    llava_engine: Engine, messages: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    monkeypatch.setattr(llava_engine.family.processor, "chat_template", template)
    with pytest.raises(InvalidInput, match="roles must alternate"):
        llava_engine.chat(messages)


def test_one_bad_picture_fails_the_call_and_not_the_engine(llava_engine: Engine, messages: list[Message]) -> None:
    with pytest.raises(InvalidImage):
        llava_engine.batch([messages, [user_message("?", b"not a picture")]])
    assert llava_engine.chat(messages, generation=Generation(max_tokens=1)).token_ids


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_memory_is_freed_after_running_out(llava_folder: Path, messages: list[Message]) -> None:
    engine = Engine.load(ModelSpec(model=str(llava_folder), device="cuda"))
    engine.chat(messages, generation=Generation(max_tokens=2))
    before = torch.cuda.memory_allocated()

    def fail(*_: Any) -> None:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")

    handle = engine.family.decoder.text_model.layers[4].register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemory):
        engine.chat(messages)
    handle.remove()
    assert torch.cuda.memory_allocated() <= before
    assert engine.chat(messages, generation=Generation(max_tokens=2)).token_ids


def test_empty_batches_are_empty(llava_engine: Engine) -> None:
    assert llava_engine.batch([]) == []


def test_an_answer_starts_at_once_while_another_streams(endless_engine: Engine, messages: list[Message]) -> None:
    """Check that answers share the device step by step."""
    stream = endless_engine.stream(messages, generation=LONG)
    next(stream)
    begun = time.perf_counter()
    next(endless_engine.stream(messages, generation=LONG))
    assert time.perf_counter() - begun < 60


def test_a_model_without_videos_says_so(llava_engine: Engine, picture: Picture) -> None:
    with pytest.raises(UnsupportedModel, match="does not take videos; give it frames as pictures"):
        llava_engine.chat([video_message("What happens?", [picture(), picture(seed=1)])])

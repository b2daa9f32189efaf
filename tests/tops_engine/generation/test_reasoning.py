"""Test thinking models: what is reasoning and what is the answer, its budget, the switch, and grammars behind it."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Picture, Tops
from tests.support.checkpoints import small_tokenizer
from tests.support.checkpoints_thinking import Thinks, save_thinking, write_instead
from tests.support.tape import Tape
from tops_engine.answers.base import ReasoningPiece
from tops_engine.answers.report import Answer
from tops_engine.captioning.asking import Captioned, caption_in_batches
from tops_engine.captioning.asking import Picture as CaptionPicture
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.conversation.thinking import MARKS
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, UnsupportedModel
from tops_engine.generation.reasoning import ReasoningState, ReasoningTokens
from tops_engine.generation.run import Run
from tops_engine.generation.static import StepPool
from tops_engine.settings import Generation, ModelSpec, Pruning

SCHEMA = '{"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}'
UNPRUNED = Pruning(keep=1.0)


def load(folder: Path, thinks: Thinks) -> Engine:
    return Engine.load(ModelSpec(model=str(save_thinking(folder, thinks)), device="cpu"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(tmp_path_factory.mktemp("opened"), "opened")


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(tmp_path_factory.mktemp("switched"), "switched")


@pytest.fixture(scope="module")
def messages(picture: Picture) -> list[Message]:
    return [user_message("What is shown in this picture?", picture(60, 50))]


def end_of(engine: Engine) -> int:
    return int(engine.family.tokenizer.convert_tokens_to_ids("</think>"))


def split(engine: Engine, tokens: list[int]) -> tuple[str, str]:
    """Return reasoning and answer by the plain definition: the texts before and behind the mark."""
    place = tokens.index(end_of(engine))
    decode = engine.family.tokenizer.decode
    parts = (decode(part, skip_special_tokens=True).strip() for part in (tokens[:place], tokens[place + 1 :]))
    first, second = parts
    return first, second


def test_a_model_that_ends_its_reasoning_answers_as_generate(tmp_path: Path, messages: list[Message]) -> None:
    engine = load(tmp_path, "opened")
    generation = Generation(max_tokens=24)
    thought = engine.chat(messages, UNPRUNED, generation)
    assert (thought.text, thought.finish_reason) == ("", "length")
    assert thought.usage.reasoning_tokens == len(thought.token_ids) == 24
    write_instead(engine, "</think>", thought.token_ids[7])
    engine.forget()
    answer = engine.chat(messages, UNPRUNED, generation)
    prompt = engine.family.prepare(read_conversation(messages))
    with torch.inference_mode():
        ids = prompt.input_ids[None]
        output = engine.family.model.generate(input_ids=ids, **prompt.pixels, max_new_tokens=24, do_sample=False)
    assert answer.token_ids == output[0, len(prompt.input_ids) :].tolist()
    assert (answer.reasoning, answer.text.rstrip()) == split(engine, answer.token_ids)
    assert answer.reasoning
    assert answer.text
    assert f", {answer.usage.reasoning_tokens} of them reasoning (" in answer.summary()


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_a_budget_ends_the_reasoning_and_both_parts_stream(
    opened: Engine, messages: list[Message], keep: float
) -> None:
    generation = Generation(max_tokens=20, thinking=6)
    *pieces, answer = opened.stream(messages, Pruning(keep=keep), generation)
    assert isinstance(answer, Answer)
    assert answer.usage.reasoning_tokens == 6
    assert answer.token_ids[6] == end_of(opened)
    assert (answer.reasoning, answer.text.rstrip()) == split(opened, answer.token_ids)
    thoughts = [piece.text for piece in pieces if isinstance(piece, ReasoningPiece)]
    assert "".join(thoughts).rstrip() == answer.reasoning
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == answer.text
    assert all(isinstance(piece, ReasoningPiece) for piece in pieces[: len(thoughts)])
    assert answer.reasoning != answer.text != ""


def test_a_batch_thinks_as_each_conversation_alone(opened: Engine, messages: list[Message], picture: Picture) -> None:
    conversations: list[list[Message]] = [
        messages,
        [user_message("Who?")],
        [user_message("Compare.", picture(40, 80), picture(90, 50))],
    ]
    generation = Generation(max_tokens=16, thinking=5)
    together = opened.batch(conversations, generation=generation)
    for conversation, answer in zip(conversations, together, strict=True):
        alone = opened.chat(conversation, generation=generation)
        assert (answer.reasoning, answer.text) == (alone.reasoning, alone.text)
        assert answer.usage.reasoning_tokens == 5


def test_static_steps_that_run_ahead_wait_for_a_budget(opened: Engine, messages: list[Message]) -> None:
    generation = Generation(max_tokens=12, thinking=4)
    expected = opened.chat(messages, UNPRUNED, generation)
    pool = StepPool(opened.family.decoder, compiled=False, record=Tape())
    pool.runs_ahead = True
    run = Run(opened.family, "test", [read_conversation(messages)], UNPRUNED, generation, steps=pool)
    run.start()
    while not run.done:
        run.step()
    assert run.answers()[0].token_ids == expected.token_ids


def test_the_switch_of_the_template_is_set(switched: Engine, messages: list[Message]) -> None:
    generation = Generation(max_tokens=8)
    on, off = (
        switched.chat(messages, generation=generation.model_copy(update={"thinking": value})) for value in ("on", "off")
    )
    assert (on.text, on.usage.reasoning_tokens) == ("", 8)
    assert (off.reasoning, off.usage.reasoning_tokens) == ("", 0)
    assert off.text
    assert off.usage.prompt_tokens > on.usage.prompt_tokens
    assert switched.chat(messages, generation=generation).token_ids == on.token_ids, "this template thinks by default"
    assert switched.chat(messages, generation=Generation(max_tokens=8, thinking=3)).usage.reasoning_tokens == 3


def test_a_model_that_begins_by_itself(tmp_path: Path, messages: list[Message]) -> None:
    engine = load(tmp_path, "by itself")
    first = engine.chat(messages, UNPRUNED, Generation(max_tokens=8))
    assert first.reasoning == ""
    write_instead(engine, "<think>", first.token_ids[0])
    engine.forget()
    answer = engine.chat(messages, UNPRUNED, Generation(max_tokens=12, thinking=4))
    assert answer.token_ids[0] == engine.family.tokenizer.convert_tokens_to_ids("<think>")
    assert answer.token_ids[5] == end_of(engine)
    assert (answer.reasoning, answer.text.rstrip()) == split(engine, answer.token_ids[1:])
    structured = engine.chat(messages, UNPRUNED, Generation(max_tokens=60, thinking=4, json_schema=SCHEMA))
    assert structured.usage.reasoning_tokens == 4
    assert isinstance(json.loads(structured.text)["number"], int)


@pytest.mark.parametrize("thinking", [5, "off"])
def test_a_grammar_begins_behind_the_reasoning(switched: Engine, messages: list[Message], thinking: Any) -> None:
    pytest.importorskip("llguidance")
    generation = Generation(max_tokens=60, thinking=thinking, json_schema=SCHEMA)
    answer = switched.chat(messages, generation=generation)
    assert isinstance(json.loads(answer.text)["number"], int)
    assert answer.usage.reasoning_tokens == (5 if thinking == 5 else 0)
    assert answer.finish_reason == "stop"


def test_a_grammar_lets_no_answer_end_in_its_reasoning(tmp_path: Path, messages: list[Message]) -> None:
    pytest.importorskip("llguidance")
    engine = load(tmp_path, "opened")
    first = engine.chat(messages, UNPRUNED, Generation(max_tokens=8))
    write_instead(engine, "</s>", first.token_ids[3])
    engine.forget()
    assert engine.chat(messages, UNPRUNED, Generation(max_tokens=8)).finish_reason == "stop"
    generation = Generation(max_tokens=60, thinking=6, json_schema=SCHEMA)
    answer = engine.chat(messages, UNPRUNED, generation)
    assert answer.usage.reasoning_tokens == 6
    assert isinstance(json.loads(answer.text)["number"], int)


def test_what_a_model_cannot_do_is_refused(tmp_path: Path, llava_engine: Engine, messages: list[Message]) -> None:
    engine = load(tmp_path, "not")
    for value in ("on", "off"):
        with pytest.raises(UnsupportedModel, match="chat template has no switch for thinking; leave thinking unset"):
            engine.chat(messages, generation=Generation(thinking=value))
    with pytest.raises(UnsupportedModel, match="thinking=9 bounds the reasoning of a thinking model, and this model"):
        llava_engine.chat(messages, generation=Generation(thinking=9))
    assert llava_engine.chat(messages, generation=Generation(max_tokens=2)).reasoning == ""


@pytest.mark.parametrize("value", ["x", 0, -3, 1.5, "1.5"])
def test_other_values_are_refused_in_one_sentence(value: Any) -> None:
    with pytest.raises(
        InvalidInput, match=r"^thinking=.* is not allowed: give on, off or the most tokens of reasoning\.$"
    ):
        Generation(thinking=value)


def test_values_of_flags_and_booleans_are_read() -> None:
    values = {"on": "on", "off": "off", "64": 64, True: "on", False: "off"}
    assert [Generation(thinking=given).thinking for given in values] == list(values.values())


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.begin)
def test_marks_and_labels_are_no_part_of_the_reasoning(marks: Any) -> None:
    tokenizer = small_tokenizer("<s>", first=marks.begin, last=marks.end)
    tokens = ReasoningTokens.of(tokenizer)
    assert tokens is not None
    text = f"{marks.begin}{marks.label}It is red.{marks.end}Red"
    state = ReasoningState(tokens, torch.tensor(tokenizer.encode("Hello")))
    parts = [(token, state.push(token)) for token in tokenizer.encode(text, add_special_tokens=False)]
    of = {kind: tokenizer.decode([token for token, part in parts if part == kind]) for kind in ("reasoning", "answer")}
    assert of == {"reasoning": "It is red.", "answer": "Red"}
    opened = torch.tensor(tokenizer.encode(f"Hello{marks.begin}{marks.label}"))
    assert tokens.left_open(opened)
    assert not tokens.left_open(torch.tensor(tokenizer.encode(f"Hello{marks.begin}\n\n{marks.end}\n\n")))


def test_a_caption_is_never_the_reasoning(opened: Engine, picture: Picture) -> None:
    pictures = [CaptionPicture(name, picture(60, 50, seed)) for seed, name in enumerate("ab")]

    def captions(generation: Generation) -> list[Captioned]:
        answer = partial(opened.batch, pruning=UNPRUNED, generation=generation)
        return list(caption_in_batches(answer, pictures, "Describe this picture.", 2))

    for one in captions(Generation(max_tokens=12, thinking=4)):
        assert one.answer is not None
        assert one.caption == " ".join(one.answer.text.split()) != ""
    for one in captions(Generation(max_tokens=4)):
        assert one.caption == ""
        assert str(one.error) == "The model wrote only reasoning, and no caption; raise max_tokens, or set thinking."


def test_the_command_prints_the_reasoning_apart(tops: Tops, opened: Engine) -> None:
    flags = ("--model", opened.spec.model, "--device", "cpu", "--max-tokens", 12, "--thinking", 4)
    expected = opened.chat([user_message("Who?")], generation=Generation(max_tokens=12, thinking=4))
    result = tops("ask", "Who?", *flags)
    assert result.code == 0
    assert result.out.rstrip() == expected.text.rstrip()
    assert expected.reasoning in result.err
    read = json.loads(tops("ask", "Who?", *flags, "--json").out)
    assert (read["text"], read["reasoning"]) == (expected.text, expected.reasoning)

"""Test cascades: the answer of the first budget that the model is sure with, and what all budgets cost."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from tests.conftest import Picture
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.settings import Generation, ModelSpec, Pruning

GENERATION = Generation(max_tokens=6)
FEW, MORE = 0.25, 0.5
#: Thresholds that every answer reaches, and that none reaches.
ALWAYS, NEVER = 1e-30, 1.0


@pytest.fixture(autouse=True)
def nothing_kept(llava_engine: Engine) -> Iterator[None]:
    yield
    llava_engine.forget()


@pytest.fixture
def questions(picture: Picture) -> list[list[Message]]:
    """Questions of which the model is more and less sure."""
    texts = ["What?", "Which colour has it?", "Where is the cat, and what does it do?"]
    return [[user_message(text, picture(60, 60, number))] for number, text in enumerate(texts)]


def each_alone(engine: Engine, questions: Sequence[list[Message]], keep: float) -> list[Answer]:
    return list(engine.batch(questions, Pruning(keep=keep), GENERATION))


def confidences(engine: Engine, questions: Sequence[list[Message]], **options: Any) -> list[float]:
    sure = Pruning(keep=(FEW, 1.0), confident=ALWAYS, **options)
    found = []
    for answer in engine.batch(questions, sure, GENERATION):
        assert answer.usage.cascade is not None
        found.append(answer.usage.cascade.steps[0].confidence or 0.0)
    return found


@pytest.mark.parametrize("threshold", [ALWAYS, NEVER])
def test_the_answer_is_that_of_the_budget_alone(
    llava_engine: Engine, questions: list[list[Message]], threshold: float
) -> None:
    pruning = Pruning(keep=(FEW, MORE, 1.0), confident=threshold)
    unpruned = Pruning(method="none", keep=1.0)
    expected = unpruned if threshold == NEVER else Pruning(keep=FEW)
    for question in questions:
        llava_engine.forget()
        alone = llava_engine.chat(question, expected, GENERATION)
        llava_engine.forget()
        answer = llava_engine.chat(question, pruning, GENERATION)
        assert answer.token_ids == alone.token_ids
        assert answer.text == alone.text
        assert answer.usage.stages == alone.usage.stages
        cascade = answer.usage.cascade
        assert cascade is not None
        assert cascade.answered_by == len(cascade.steps) == (3 if threshold == NEVER else 1)
        assert answer.usage.layer_average == sum(step.layer_average for step in cascade.steps)
        assert cascade.mean == answer.usage.kept_fraction
        # The picture is encoded once; the language model reads it once for each budget.
        assert answer.flops.vision == alone.flops.vision
        assert answer.kv_cache_bytes == alone.kv_cache_bytes
    assert answer.pruning["keep"] == [FEW, MORE, 1.0]
    assert "of the cascade" in answer.summary()


def test_flops_are_those_of_all_budgets(llava_engine: Engine, questions: list[list[Message]]) -> None:
    answer = llava_engine.chat(questions[0], Pruning(keep=(FEW, MORE), confident=NEVER), GENERATION)
    parts = []
    for keep in (FEW, MORE):
        llava_engine.forget()
        parts.append(llava_engine.chat(questions[0], Pruning(keep=keep), GENERATION))
    assert answer.flops.prefill == sum(part.flops.prefill for part in parts)
    assert answer.flops.selection == sum(part.flops.selection for part in parts)
    assert answer.timings.first_token <= answer.timings.total


@pytest.mark.parametrize("by", ["joint", "mean"])
@pytest.mark.parametrize("over", [1, 3, 99])
def test_confidence_is_the_probability_of_the_first_tokens(
    llava_engine: Engine, questions: list[list[Message]], by: Any, over: int
) -> None:
    few = Pruning(keep=FEW)
    expected = []
    for question, alone in zip(questions, each_alone(llava_engine, questions, FEW), strict=True):
        logits = llava_engine.answer_logits(question, few, alone.token_ids)
        largest = logits.softmax(dim=-1).amax(dim=-1)[:over]
        expected.append(float(largest.prod() if by == "joint" else largest.mean()))
    found = confidences(llava_engine, questions, confident_over=over, confident_by=by)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("over", [1, 4])
def test_only_the_conversations_that_it_is_unsure_of_go_on(
    llava_engine: Engine, questions: list[list[Message]], over: int
) -> None:
    sure = confidences(llava_engine, questions, confident_over=over)
    threshold = (sorted(sure)[1] + sorted(sure)[2]) / 2
    pruning = Pruning(keep=(FEW, 1.0), confident=threshold, confident_over=over)
    answers = llava_engine.batch(questions, pruning, GENERATION)
    few, full = each_alone(llava_engine, questions, FEW), each_alone(llava_engine, questions, 1.0)
    total = 0.0
    for answer, one, other, confidence in zip(answers, few, full, sure, strict=True):
        assert answer.usage.cascade is not None
        goes_on = confidence < threshold
        assert answer.usage.cascade.answered_by == 1 + goes_on
        assert answer.token_ids == (other if goes_on else one).token_ids
        total += one.usage.layer_average + goes_on * other.usage.layer_average
    assert answers[0].usage.cascade is not None
    assert answers[0].usage.cascade.mean == pytest.approx(total / 48)
    assert {answer.usage.cascade.answers for answer in answers if answer.usage.cascade} == {3}


def test_a_batch_of_one_is_a_chat(llava_engine: Engine, questions: list[list[Message]]) -> None:
    pruning = Pruning(keep=(FEW, 1.0), confident=NEVER)
    (one,) = llava_engine.batch(questions[:1], pruning, GENERATION)
    assert one.token_ids == llava_engine.chat(questions[0], pruning, GENERATION).token_ids


def test_a_picture_is_encoded_once_without_a_cache(
    llava_folder: Any, questions: list[list[Message]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(ModelSpec(model=str(llava_folder), device="cpu", cache_mb=0))
    encoded = 0
    encode = engine.family.encode

    def counting(prompts: Any, *tower: Any) -> Any:
        nonlocal encoded
        encoded += len(prompts)
        return encode(prompts, *tower)

    monkeypatch.setattr(engine.family, "encode", counting)
    engine.chat(questions[0], Pruning(keep=(FEW, MORE, 1.0), confident=NEVER), GENERATION)
    engine.batch(questions, Pruning(keep=(FEW, MORE, 1.0), confident=NEVER), GENERATION)
    assert encoded == 1 + len(questions)


@pytest.mark.parametrize("threshold", [ALWAYS, NEVER])
@pytest.mark.parametrize("over", [1, 3, 99])
def test_a_stream_shows_nothing_before_the_decision(
    llava_engine: Engine, questions: list[list[Message]], threshold: float, over: int
) -> None:
    pruning = Pruning(keep=(FEW, 1.0), confident=threshold, confident_over=over)
    *pieces, answer = llava_engine.stream(questions[0], pruning, GENERATION)
    assert isinstance(answer, Answer)
    assert "".join(map(str, pieces)) == answer.text
    keep = 1.0 if threshold == NEVER else FEW
    assert answer.text == llava_engine.chat(questions[0], Pruning(keep=keep), GENERATION).text


def test_a_cancelled_cascade_ends_with_what_it_has(llava_engine: Engine, questions: list[list[Message]]) -> None:
    cancel = threading.Event()
    cancel.set()
    for pruning in (Pruning(keep=(FEW, 1.0), confident=NEVER), Pruning(keep=(FEW, 1.0), confident=ALWAYS)):
        *pieces, answer = llava_engine.stream(questions[0], pruning, GENERATION, cancel)
        assert isinstance(answer, Answer)
        assert answer.finish_reason == "cancelled"
        assert "".join(map(str, pieces)) == answer.text


def test_scores_are_those_of_the_budget_that_answered(llava_engine: Engine, questions: list[list[Message]]) -> None:
    sure = confidences(llava_engine, questions)
    threshold = (sorted(sure)[0] + sorted(sure)[1]) / 2
    references = [answer.token_ids for answer in each_alone(llava_engine, questions, 1.0)]
    pruning = Pruning(keep=(FEW, 1.0), confident=threshold)
    scored = llava_engine.scored_batch(questions, pruning, GENERATION, references)
    few = llava_engine.scored_batch(questions, Pruning(keep=FEW), GENERATION, references)
    full = llava_engine.scored_batch(questions, Pruning(keep=1.0), GENERATION, references)
    for one, small, large, confidence in zip(scored, few, full, sure, strict=True):
        expected = large if confidence < threshold else small
        assert one.loss == pytest.approx(expected.loss, rel=1e-4)
        assert torch.allclose(one.first_token, expected.first_token, atol=1e-4)


def test_a_schema_and_sampling_hold_in_a_cascade(llava_engine: Engine, questions: list[list[Message]]) -> None:
    schema = Generation(max_tokens=40, json_schema='{"type": "boolean"}')
    answer = llava_engine.chat(questions[0], Pruning(keep=(FEW, 1.0), confident=NEVER), schema)
    assert answer.text in ("true", "false")
    drawn = Generation(max_tokens=6, temperature=1.0, seed=3)
    alone = llava_engine.chat(questions[0], Pruning(keep=1.0), drawn)
    assert llava_engine.chat(questions[0], Pruning(keep=(FEW, 1.0), confident=NEVER), drawn).text == alone.text


def test_a_cascade_divides_each_of_its_budgets(llava_engine: Engine, picture: Picture) -> None:
    shown = [picture(60, 60, 1), Image.new("RGB", (60, 60), "red")]
    conversations = [[user_message("What?", one)] for one in shown]
    pruning = Pruning(keep=(FEW, MORE), confident=NEVER, allocation="coverage", stages="first")
    answers = llava_engine.batch(conversations, pruning, GENERATION)
    assert sum(answer.usage.stages[0].visual_tokens[0] for answer in answers) == 16
    assert sum(answer.usage.layer_average for answer in answers) == 24


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep": (0.5, 0.1)}, r"the budgets of a cascade have to rise, and 0\.1 comes after 0\.5; write 0\.1\+0\.5"),
        ({"keep": (0.5, 0.5)}, "have to rise"),
        ({"keep": (1.0, 0.5)}, "have to rise"),
        ({"keep": (0.5, 64)}, "give all budgets of a cascade as fractions or all as numbers of tokens"),
        ({"keep": "0.1+"}, "give a fraction above 0"),
        ({"keep": (0.3,)}, "give a fraction above 0"),
        ({"keep": (0.1, 0.5), "method": "none"}, "chooses no tokens; a cascade needs one that does"),
        ({"keep": (0.1, 0.5), "confident": 1.5}, r"confident=1\.5 is not allowed"),
        ({"confident": 0.9}, r"confident=0\.9 says when a cascade goes on to its next budget; give several"),
        ({"keep": (0.1, 0.5), "schedule": "0:64"}, "keep and schedule both set the budget"),
        ({"keep": (0.1, 0.5), "allocation": "coverage", "keep_min": 0.2}, r"keep_min=0\.2 is above keep=0\.1"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Pruning(**options)


def test_a_cascade_is_written_as_text_and_json() -> None:
    pruning = Pruning(keep=(0.111, 0.5), confident=0.9)
    assert (pruning.label, pruning.budget_text) == ("tops:confident=0.9", "0.111+0.5")
    assert Pruning.from_label(pruning.label, pruning.budget_text) == pruning
    assert Pruning(**pruning.model_dump(mode="json")) == pruning
    assert Pruning(keep=(64, 1.0)).keep == (64, 1.0)


def test_the_logits_of_an_answer_need_one_budget(llava_engine: Engine, questions: list[list[Message]]) -> None:
    with pytest.raises(InvalidInput, match="are those of one budget"):
        llava_engine.answer_logits(questions[0], Pruning(keep=(FEW, 1.0)), [1])

"""Test budgets that are divided among pictures, on a model: the mean, the joint selection, answers and reuse."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.slow_reference import greedy_tokens, model_inputs_embeds
from tests.support.usage import token_counts
from tests.tops_engine.generation.test_own_budgets import run_layers
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.selection import CURVES, greedy_select_reference
from tops_engine.settings import Generation, ModelSpec, Pruning

GENERATION = Generation(max_tokens=5)
ALLOCATIONS = sorted(CURVES)


@pytest.fixture(scope="module")
def eager_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = save_llava(tmp_path_factory.mktemp("checkpoint"), "llama")
    return Engine.load(ModelSpec(model=str(folder), device="cpu", attention="eager"))


@pytest.fixture(autouse=True)
def nothing_kept(llava_engine: Engine, llava_next_engine: Engine) -> Iterator[None]:
    yield
    llava_engine.forget()
    llava_next_engine.forget()


@pytest.fixture
def pictures(picture: Picture) -> list[Image.Image]:
    """Pictures of 16 tokens that are harder and easier: random pixels, one colour, a few."""
    return [picture(60, 60, 1), Image.new("RGB", (60, 60), "red"), picture(4, 4, 2).resize((60, 60))]


def counts(answers: Sequence[Any]) -> list[list[int]]:
    return [answer.usage.stages[0].visual_tokens for answer in answers]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("method", ["random", "divprune"])
def test_the_mean_is_met_exactly_over_a_batch(
    llava_engine: Engine, pictures: list[Image.Image], allocation: Any, method: str
) -> None:
    pruning = Pruning(method=method, keep=0.375, allocation=allocation)
    conversations = [[user_message("What?", *pictures[:2])], [user_message("What?", pictures[2])], [user_message("?")]]
    answers = llava_engine.batch(conversations, pruning, GENERATION)

    (first, second), (third,), none = counts(answers)
    assert first + second + third == 18
    assert none == []
    family = llava_engine.family
    with torch.inference_mode():
        (images,) = family.encode([family.prepare(read_conversation([user_message("What?", *pictures)]))])
    # The bounds: a quarter of 6 tokens, and all 16.
    shares = [CURVES[allocation](image.features, 16) for image in images]
    expected = [2, 2, 2]
    while sum(expected) < 18:
        expected[min(range(3), key=lambda number: shares[number][expected[number] - 1])] += 1
    assert [first, second, third] == expected
    usage = answers[0].usage.allocation
    assert usage is not None
    assert (usage.allocation, usage.pictures, usage.mean) == (allocation, 3, 0.375)
    assert (usage.least, usage.most) == (min(expected) / 16, max(expected) / 16)
    spread = torch.tensor(expected).div(16).std(correction=0)
    assert usage.deviation == pytest.approx(float(spread))


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_the_mean_of_several_stages_is_met_to_within_their_rounding(
    llava_next_engine: Engine, pictures: list[Image.Image], picture: Picture, allocation: Any
) -> None:
    shown = [*pictures, picture(110, 70, 3), picture(60, 250, 4)]
    conversations = [[user_message("What?", one)] for one in shown]
    answers = llava_next_engine.batch(conversations, Pruning(keep=0.3, allocation=allocation), GENERATION)
    total = sum(answer.usage.visual_tokens for answer in answers)
    assert sum(answer.usage.layer_average for answer in answers) == pytest.approx(0.3 * total, abs=0.5 * len(shown))
    assert len({round(answer.usage.kept_fraction, 2) for answer in answers}) > 1


def test_a_single_picture_gets_the_mean(llava_engine: Engine, pictures: list[Image.Image]) -> None:
    question = [user_message("What?", pictures[0])]
    fixed = llava_engine.chat(question, Pruning(keep=0.5), GENERATION)
    llava_engine.forget()
    alone = llava_engine.chat(question, Pruning(keep=0.5, allocation="coverage"), GENERATION)
    assert alone.token_ids == fixed.token_ids
    assert alone.usage.stages == fixed.usage.stages
    assert alone.usage.allocation is not None
    assert fixed.usage.allocation is None
    assert llava_engine.chat([user_message("Hello")], Pruning(allocation="coverage"), GENERATION).usage.stages


def test_bounds_and_own_budgets_are_kept(llava_engine: Engine, pictures: list[Image.Image]) -> None:
    bounded = Pruning(method="random", keep=0.5, allocation="coverage", keep_min=7, keep_max=0.5625)
    message = user_message("What?", *pictures, keep=[None, None, None])
    (kept,) = counts([llava_engine.chat([message], bounded, GENERATION)])
    assert sum(kept) == 24
    assert min(kept) >= 7
    assert max(kept) <= 9
    own = user_message("What?", *pictures, keep=[None, 3, None])
    (kept,) = counts([llava_engine.chat([own], bounded, GENERATION)])
    assert kept[1] == 3
    assert kept[0] + kept[2] == 16


def joint_selection(
    features: list[Tensor], relevances: list[Tensor], count: int, least: int
) -> tuple[list[list[int]], bool]:
    """Return what TOPS keeps of several pictures together, by the plain algorithm on all their tokens.

    The flag says whether a picture had fewer than ``least`` tokens, so that those chosen last gave way to its own.
    """
    plain = partial(greedy_select_reference, diversity_weight=0.5, coverage_weight=0.5)
    order = plain(torch.cat(features), torch.cat(relevances), count)
    owners = [number for number, rows in enumerate(features) for _ in rows]
    starts = [owners.index(number) for number in range(len(features))]
    chosen = [[token for token in order if owners[token] == number] for number in range(len(features))]
    gave_way = False
    while min(map(len, chosen)) < least:
        poor = next(number for number, tokens in enumerate(chosen) if len(tokens) < least)
        last = max((tokens[-1] for tokens in chosen if len(tokens) > least), key=order.index)
        chosen[owners[last]].remove(last)
        own = plain(features[poor], relevances[poor], least)
        chosen[poor].append(next(starts[poor] + t for t in own if starts[poor] + t not in chosen[poor]))
        gave_way = True
    kept = [sorted(token - start for token in tokens) for start, tokens in zip(starts, chosen, strict=True)]
    return kept, gave_way


def test_a_joint_selection_is_that_of_the_plain_algorithm_in_both_stages(
    eager_engine: Engine, pictures: list[Image.Image]
) -> None:
    question: list[Message] = [user_message("What is shown in these pictures?", *pictures)]
    answer = eager_engine.chat(question, Pruning(keep=0.5, budget_per="prompt", keep_min=2), GENERATION)
    # One picture of 48 tokens at 24: 48 from layer 0 on, 12 from layer 3, 6 from layer 6.
    assert [(stage.layer, sum(stage.visual_tokens)) for stage in answer.usage.stages] == [(0, 48), (3, 12), (6, 6)]
    narrow = eager_engine.chat(question, Pruning(keep=0.25, budget_per="prompt", keep_min=2), GENERATION)
    assert [(stage.layer, sum(stage.visual_tokens)) for stage in narrow.usage.stages] == [(0, 24), (3, 6), (6, 3)]
    # At least 2 of 12 tokens of each: 4 of 24, then 1 of 6.
    first, second = expected_stages(eager_engine, question, (24, 4), (6, 1))
    assert first == [kept.tolist() for kept in narrow.token_map.stages[0][1]]
    assert second == [kept.tolist() for kept in narrow.token_map.stages[1][1]]


@torch.inference_mode()
def expected_stages(
    engine: Engine, question: list[Message], stage_one: tuple[int, int], stage_two: tuple[int, int]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return what is kept at both stages, of which each has a number of tokens and the least of a picture."""
    family = engine.family
    prompt = family.prepare(read_conversation(question))
    (images,) = family.encode([prompt])
    embeds = model_inputs_embeds(family, prompt)[0]
    attentions = [image.vision_attention() for image in images]
    features = [embeds[span.positions] for span in prompt.spans]
    first, gave_way = joint_selection(features, [one / one.mean() for one in attentions], *stage_one)
    assert gave_way, "this test is about the least, too"

    alive = torch.ones(len(embeds), dtype=torch.bool)
    for span, kept in zip(prompt.spans, first, strict=True):
        alive[span.positions] = False
        alive[span.positions[kept]] = True
    place = alive.cumsum(0) - 1
    hidden, attention = run_layers(family.text_model, embeds[alive][None], 3)
    slots = [place[span.positions[kept]] for span, kept in zip(prompt.spans, first, strict=True)]
    is_text = torch.ones(len(hidden), dtype=torch.bool)
    is_text[torch.cat(slots)] = False
    relevances = []
    for own in slots:
        text = is_text.nonzero().flatten()
        rows = attention[text[text > own[-1]]][:, own]
        mass = rows.sum(dim=1)
        relevances.append(rows[mass > mass.mean()].mean(dim=0))
    second, _ = joint_selection([hidden[own] for own in slots], relevances, *stage_two)
    return first, [[kept[token] for token in chosen] for kept, chosen in zip(first, second, strict=True)]


def test_a_repeated_picture_costs_almost_nothing(llava_engine: Engine, pictures: list[Image.Image]) -> None:
    first, other = pictures[0], pictures[2]
    pruning = Pruning(keep=0.4, budget_per="prompt", stages="first", criteria="coverage")
    answer = llava_engine.chat([user_message("What?", first, first, other)], pruning, GENERATION)
    one, again, last = answer.usage.stages[0].visual_tokens
    assert one + again + last == round(0.4 * 48)
    # The least is a quarter of the mean: int(19 * 1 / 19.2).
    assert again == 1
    assert one > again
    assert last > again


def test_answers_to_a_joint_selection_are_those_of_the_slow_reference(
    llava_engine: Engine, pictures: list[Image.Image]
) -> None:
    question = [user_message("What?", *pictures)]
    answer = llava_engine.chat(question, Pruning(keep=0.3, budget_per="prompt", allocation="coverage"), GENERATION)
    assert answer.token_ids == greedy_tokens(llava_engine.family, question, answer, "contiguous", len(answer.token_ids))


@pytest.mark.parametrize("options", [{"allocation": "coverage"}, {"budget_per": "prompt"}], ids=str)
def test_going_on_answers_as_reading_anew(
    llava_engine: Engine, pictures: list[Image.Image], options: dict[str, Any]
) -> None:
    pruning = Pruning(keep=0.5, **options)
    prompts: list[list[Message]] = [
        [user_message("What?", *pictures)],
        [user_message("Which?", *pictures)],
        [user_message("Which?", *pictures[:2])],
        [user_message("Which?", *pictures[:2], pictures[0])],
    ]
    cold = []
    for prompt in prompts:
        llava_engine.forget()
        cold.append(llava_engine.chat(prompt, pruning, GENERATION))
    llava_engine.forget()
    for prompt, expected in zip(prompts, cold, strict=True):
        answer = llava_engine.chat(prompt, pruning, GENERATION)
        assert answer.token_ids == expected.token_ids
        assert token_counts(answer) | {"reused_tokens": 0} == token_counts(expected)
        for (_, kept), (_, wanted) in zip(answer.token_map.stages, expected.token_map.stages, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(kept, wanted, strict=True))


def test_a_joint_batch_answers_as_each_conversation_alone(llava_engine: Engine, pictures: list[Image.Image]) -> None:
    pruning = Pruning(keep=0.5, budget_per="prompt")
    conversations = [[user_message("What?", *pictures)], [user_message("What?", *pictures[1:], keep=[0.25, None])]]
    alone = []
    for messages in conversations:
        llava_engine.forget()
        alone.append(llava_engine.chat(messages, pruning, GENERATION))
    together = llava_engine.batch(conversations, pruning, GENERATION)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert counts(together) == counts(alone)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"allocation": "magic"}, "allocation='magic' is not allowed"),
        ({"allocation": "coverage", "method": "none"}, "method 'none' chooses no tokens"),
        ({"allocation": "erank", "schedule": "0:64"}, "a schedule sets the numbers of tokens"),
        ({"budget_per": "prompt", "method": "divprune"}, "chooses the tokens of each picture alone"),
        ({"allocation": "coverage", "keep": 0.2, "keep_min": 0.3}, "keep_min=0.3 is above keep=0.2"),
        ({"allocation": "coverage", "keep": 64, "keep_max": 32}, "keep_max=32 is below keep=64"),
        ({"keep_min": 0.1}, "keep_min=0.1 bounds what allocation or budget_per=prompt give"),
        ({"budget_per": "prompt", "keep_max": 0.9}, "keep_max bounds what an allocation gives"),
        ({"allocation": "coverage", "keep_min": 1.5}, "keep_min=1.5 is not allowed"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Pruning(**options)


def test_a_budget_that_a_method_cannot_meet_says_what_to_set(llava_engine: Engine, pictures: list[Image.Image]) -> None:
    # FastV sees everything in layers 0 and 1, a quarter of the budget.
    pruning = Pruning(method="fastv", keep=0.3, allocation="coverage", keep_min=2)
    with pytest.raises(
        InvalidInput, match=r"allocation=coverage gives a picture too small a budget: .* Set keep_min\."
    ):
        llava_engine.chat([user_message("What?", *pictures)], pruning, GENERATION)
    fitting = Pruning(method="fastv", keep=0.4, allocation="coverage", keep_min=0.35)
    assert llava_engine.chat([user_message("What?", *pictures)], fitting, GENERATION).usage.stages


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep": 0.25, "keep_min": 12}, "keep_min=12 is above keep=0.25, the mean of all pictures, which is 4 tokens"),
        ({"keep": 8, "keep_max": 0.25}, "keep_max=0.25 is below keep=8, the mean of all pictures, which is 8 tokens"),
    ],
)
def test_a_bound_in_another_unit_is_compared_when_the_picture_is_known(
    llava_engine: Engine, pictures: list[Image.Image], options: dict[str, Any], sentence: str
) -> None:
    pruning = Pruning(allocation="coverage", **options)
    with pytest.raises(BudgetError, match=f"{sentence} of a picture with 16; give .* both as fractions or both as"):
        llava_engine.chat([user_message("What?", pictures[0])], pruning, GENERATION)


@pytest.mark.parametrize("options", [{"allocation": "coverage"}, {"budget_per": "prompt"}])
def test_one_picture_alone_gets_the_whole_budget(
    llava_engine: Engine, pictures: list[Image.Image], options: dict[str, Any]
) -> None:
    question = [user_message("What?", pictures[0])]
    (answer,) = llava_engine.batch([question], Pruning(keep=0.25, **options), GENERATION)
    assert counts([answer]) == counts([llava_engine.chat(question, Pruning(keep=0.25), GENERATION)])
    assert answer.usage.allocation is not None
    assert (answer.usage.allocation.pictures, answer.usage.allocation.deviation) == (1, 0.0)


def test_a_label_names_the_allocation() -> None:
    pruning = Pruning(allocation="coverage", keep_min=0.1, alpha=0.4)
    assert pruning.label == "tops:allocation=coverage:keep_min=0.1:alpha=0.4"
    assert Pruning.from_label(pruning.label, pruning.keep).label == pruning.label
    assert Pruning(**pruning.model_dump()) == pruning

"""Test pictures that have budgets of their own: counts, selections, answers, batches and reuse."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.checkpoints_qwen import save_qwen2_5_vl
from tests.support.slow_reference import greedy_tokens, model_inputs_embeds
from tests.support.usage import token_counts
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError
from tops_engine.methods import METHODS
from tops_engine.selection import greedy_select_reference
from tops_engine.settings import Generation, ModelSpec, Pruning

GENERATION = Generation(max_tokens=6)


@pytest.fixture(scope="module")
def eager_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = save_llava(tmp_path_factory.mktemp("checkpoint"), "llama")
    return Engine.load(ModelSpec(model=str(folder), device="cpu", attention="eager"))


@pytest.fixture(autouse=True)
def nothing_kept(llava_engine: Engine) -> Iterator[None]:
    yield
    llava_engine.forget()


@pytest.fixture(scope="session")
def question(picture: Picture) -> list[Message]:
    """Three pictures of 16 tokens: one whole, one with a quarter, one with the budget of the pruning."""
    pictures = [picture(110, 70, 1), picture(60, 90, 2), picture(60, 60, 3)]
    return [user_message("What is shown in these pictures?", *pictures, keep=[1.0, 0.25, None])]


def test_each_picture_has_the_stages_of_its_own_budget(llava_engine: Engine, question: list[Message]) -> None:
    usage = llava_engine.chat(question, Pruning(keep=0.5), GENERATION).usage

    # Of 8 layers: 3 x 8 + 3 x 2 + 2 x 1 = 8 x 4 for a quarter, 3 x 16 + 3 x 4 + 2 x 2 = 8 x 8 for a half.
    assert [(stage.layer, stage.visual_tokens) for stage in usage.stages] == [
        (0, [16, 8, 16]),
        (3, [16, 2, 4]),
        (6, [16, 1, 2]),
    ]
    assert [(one.visual_tokens, one.keep, one.layer_average) for one in usage.pictures] == [
        (16, 1.0, 16),
        (16, 0.25, 4),
        (16, None, 8),
    ]
    assert usage.layer_average == 16 + 4 + 8


def test_a_number_of_tokens_and_a_schedule(llava_engine: Engine, picture: Picture) -> None:
    first, second = picture(60, 60, 3), picture(60, 60, 4)
    message = user_message("What?", first, second, keep=[4, None])
    usage = llava_engine.chat([message], Pruning(schedule="0:6,4:3"), GENERATION).usage

    assert [(stage.layer, stage.visual_tokens) for stage in usage.stages] == [
        (0, [8, 6]),
        (3, [2, 6]),
        (4, [2, 3]),
        (6, [1, 3]),
    ]
    assert [(one.keep, one.layer_average) for one in usage.pictures] == [(4, 4), (None, 4.5)]


def test_the_tokens_of_both_stages_are_those_of_the_algorithm(eager_engine: Engine, question: list[Message]) -> None:
    answer = eager_engine.chat(question, Pruning(keep=0.5), GENERATION)
    expected = plain_selection(eager_engine, question, [{0: 16, 3: 16}, {0: 8, 3: 2}, {0: 16, 3: 4}])
    for layer, kept in answer.token_map.stages[:2]:
        assert [indices.tolist() for indices in kept] == expected[layer]


@torch.inference_mode()
def plain_selection(engine: Engine, messages: list[Message], counts: list[dict[int, int]]) -> dict[int, list[Any]]:
    """Return what TOPS keeps of each picture from layers 0 and 3 on, computed with transformers' own eager layers."""
    family = engine.family
    prompt = family.prepare(read_conversation(messages))
    (images,) = family.encode([prompt])
    embeds, model = model_inputs_embeds(family, prompt)[0], family.text_model
    kept: dict[int, list[list[int]]] = {0: [], 3: []}
    for span, image, count in zip(prompt.spans, images, counts, strict=True):
        order = greedy_select_reference(
            embeds[span.positions], image.vision_attention(), count[0], diversity_weight=0.5, coverage_weight=0.5
        )
        kept[0].append(sorted(order))

    alive = torch.ones(len(embeds), dtype=torch.bool)
    for span, indices in zip(prompt.spans, kept[0], strict=True):
        alive[span.positions] = False
        alive[span.positions[indices]] = True
    place = alive.cumsum(0) - 1
    hidden, attention = run_layers(model, embeds[alive][None], 3)
    visual = torch.cat([place[span.positions[indices]] for span, indices in zip(prompt.spans, kept[0], strict=True)])
    is_text = torch.ones(len(hidden), dtype=torch.bool)
    is_text[visual] = False
    for span, indices, count in zip(prompt.spans, kept[0], counts, strict=True):
        own = place[span.positions[indices]]
        after = is_text.nonzero().flatten()
        rows = attention[after[after > own[-1]]][:, own]
        mass = rows.sum(dim=1)
        relevance = rows[mass > mass.mean()].mean(dim=0)
        order = greedy_select_reference(hidden[own], relevance, count[3], diversity_weight=0.5, coverage_weight=0.5)
        kept[3].append(sorted(indices[number] for number in order))
    return kept


def run_layers(model: Any, hidden: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Return the states at the input of layer ``end``, [n, d], and the attention in it, mean over heads, [n, n]."""
    rope = model.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
    mask = torch.full((hidden.shape[1], hidden.shape[1]), torch.finfo(torch.float32).min).triu(1)[None, None]
    for layer in model.layers[:end]:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rope)
    layer = model.layers[end]
    _, attention = layer.self_attn(layer.input_layernorm(hidden), attention_mask=mask, position_embeddings=rope)
    return hidden[0], attention[0].mean(dim=0)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_keeps_of_a_picture_what_it_would_keep_of_it_alone(
    llava_engine: Engine, picture: Picture, name: str
) -> None:
    """Before the language model no token depends on the other pictures."""
    if not METHODS[name]().prunes_before_the_llm:
        pytest.skip("prunes between layers")
    keeps, pictures = [0.25, 0.75, 0.5], [picture(60, 60, seed) for seed in range(3)]
    together = llava_engine.chat([user_message("What?", *pictures, keep=keeps)], Pruning(method=name), GENERATION)
    for number, (keep, one) in enumerate(zip(keeps, pictures, strict=True)):
        llava_engine.forget()
        alone = llava_engine.chat([user_message("What?", one)], Pruning(method=name, keep=keep), GENERATION)
        assert torch.equal(together.token_map.stages[0][1][number], alone.token_map.stages[0][1][0])


@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_answers_are_those_of_the_slow_reference(llava_engine: Engine, question: list[Message], positions: Any) -> None:
    answer = llava_engine.chat(question, Pruning(keep=0.5, positions=positions), GENERATION)
    assert answer.token_ids == greedy_tokens(llava_engine.family, question, answer, positions, len(answer.token_ids))


@pytest.mark.full
@pytest.mark.parametrize("method", ["tops", "fastv", "visionzip"])
def test_pictures_of_different_sizes_are_as_in_the_slow_reference(
    tmp_path: Path, picture: Picture, method: str
) -> None:
    engine = Engine.load(ModelSpec(model=str(save_qwen2_5_vl(tmp_path, "qwen2")), device="cpu"))
    message = user_message("What?", picture(110, 70, 1), picture(60, 250, 2), picture(60, 60), keep=[0.9, 0.5, 8])
    answer = engine.chat([message], Pruning(method=method), GENERATION)
    if method != "visionzip":  # the reference does not merge
        assert answer.token_ids == greedy_tokens(engine.family, [message], answer, "original", len(answer.token_ids))
    assert answer.usage.layer_average == pytest.approx(sum(one.layer_average for one in answer.usage.pictures))


def test_all_tokens_for_each_picture_is_the_model_itself(llava_engine: Engine, question: list[Message]) -> None:
    message = {**question[0], "content": [part | {"keep": 1.0} for part in question[0]["content"]]}
    expected = llava_engine.chat(question, Pruning(method="none"), GENERATION)
    assert llava_engine.chat([message], Pruning(keep=0.3), GENERATION).token_ids == expected.token_ids


def test_a_batch_answers_as_each_conversation_alone(
    llava_engine: Engine, question: list[Message], picture: Picture
) -> None:
    asked: list[Message] = [user_message("What?", picture(), keep=0.3)]
    conversations: list[list[Message]] = [question, asked, [user_message("Why?")]]
    alone = []
    for messages in conversations:
        llava_engine.forget()
        alone.append(llava_engine.chat(messages, Pruning(keep=0.5), GENERATION))
    together = llava_engine.batch(conversations, Pruning(keep=0.5), GENERATION)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [token_counts(answer) for answer in together] == [token_counts(answer) for answer in alone]


def test_a_picture_is_reused_as_long_as_its_budget_stays(llava_engine: Engine, picture: Picture) -> None:
    pictures = [picture(60, 60, seed) for seed in range(3)]

    def reused(keeps: list[Any], keep: float) -> int:
        message = user_message("What?", *pictures, keep=keeps)
        answer = llava_engine.chat([message], Pruning(keep=keep), GENERATION)
        llava_engine.forget()
        cold = llava_engine.chat([message], Pruning(keep=keep), GENERATION)
        assert answer.token_ids == cold.token_ids
        assert token_counts(answer) | {"reused_tokens": 0} == token_counts(cold)
        return answer.usage.reused_tokens

    reused([0.5, 0.5, 0.5], 1.0)
    everything = reused([None, None, None], 0.5)
    first = reused([0.5, 0.25, 0.5], 0.5)
    assert everything > first + 16 > 16
    assert reused([0.25, 0.25, 0.5], 0.5) == 0


def test_a_budget_that_cannot_be_met_names_the_picture(llava_engine: Engine, picture: Picture) -> None:
    messages = [user_message("What?", picture(60, 60), picture(60, 60, 1), keep=[0.5, 0.01])]
    with pytest.raises(BudgetError, match=r"picture or video 2 of the prompt: keep=0\.01 leaves less than one of 16"):
        llava_engine.chat(messages)
    assert llava_engine.chat([user_message("What?", picture(60, 60))], generation=GENERATION).text is not None

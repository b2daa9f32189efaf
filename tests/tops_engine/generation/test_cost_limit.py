"""Test budgets that are a limit of cost: the largest budget that fits, and what it cost."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import cached_assets_path

from tests.conftest import Picture, Tops
from tops_engine.conversation.messages import Message, user_message
from tops_engine.cost_measurement import measure_costs
from tops_engine.device.cost_model import CostModel, read_cost_model
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.settings import Generation, Pruning

GENERATION = Generation(max_tokens=4)


@pytest.fixture(autouse=True)
def own_cache(llava_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        "tops_engine.device.cost_model.cached_assets_path", partial(cached_assets_path, assets_dir=tmp_path)
    )
    yield
    llava_engine.forget()


@pytest.fixture
def question(picture: Picture) -> list[Message]:
    return [user_message("What?", picture(60, 60, 1), picture(60, 60, 2))]


def costs_by_tokens(engine: Engine, question: list[Message], name: str, **options: Any) -> dict[int, float]:
    """Return what each number of tokens of both pictures costs, as the answers report it."""
    found = {}
    unpruned = engine.chat(question, Pruning(keep=1.0), GENERATION).flops.prefill
    for count in range(2, 33):
        engine.forget()
        answer = engine.chat(question, Pruning(keep=count / 32, **options), GENERATION)
        assert len(answer.token_ids) == 4
        found[count] = answer.flops.prefill / unpruned if name == "flops" else answer.kv_cache_bytes / 2**20
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("flops", {}),
        pytest.param("flops", {"stages": "first"}, marks=pytest.mark.full),
        pytest.param("flops", {"budget_per": "prompt"}, marks=pytest.mark.full),
        pytest.param("kv_mb", {}, marks=pytest.mark.full),
        ("kv_mb", {"budget_per": "prompt"}),
    ],
)
def test_the_largest_budget_that_fits_is_kept(
    llava_engine: Engine, question: list[Message], name: str, options: dict[str, Any]
) -> None:
    costs = costs_by_tokens(llava_engine, question, name, **options)
    for limit in (costs[4], costs[9] * 1.0001, (costs[20] + costs[21]) / 2, costs[32]):
        llava_engine.forget()
        asked: Any = {name: limit}
        answer = llava_engine.chat(question, Pruning(**asked, **options), GENERATION)
        usage = answer.usage.cost_limit
        assert usage is not None
        best = max(count for count, cost in costs.items() if cost <= limit)
        assert round(usage.keep * 32) == best
        assert usage.cost == pytest.approx(costs[best])
        assert usage.cost <= limit
        assert (usage.name, usage.limit) == (name, limit)
        same = llava_engine.chat(question, Pruning(keep=usage.keep, **options), GENERATION)
        assert answer.token_ids == same.token_ids
        assert answer.usage.stages == same.usage.stages


def test_each_prompt_of_a_batch_has_its_own_budget(llava_engine: Engine, picture: Picture) -> None:
    short = [user_message("What?", picture(60, 60, 1))]
    long = [user_message("What is it? " * 8, picture(60, 60, 1), picture(60, 60, 2))]
    together = llava_engine.batch([short, long], Pruning(flops=0.7), GENERATION)
    for answer, messages in zip(together, (short, long), strict=True):
        llava_engine.forget()
        alone = llava_engine.chat(messages, Pruning(flops=0.7), GENERATION)
        assert answer.usage.cost_limit == alone.usage.cost_limit
        assert answer.token_ids == alone.token_ids
    first, second = (answer.usage.cost_limit for answer in together)
    assert first is not None
    assert second is not None
    assert first.keep != second.keep


def test_a_limit_that_cannot_be_met_says_the_least(llava_engine: Engine, question: list[Message]) -> None:
    with pytest.raises(BudgetError, match=r"flops=0\.01 cannot be met: this prompt costs at least ") as raised:
        llava_engine.chat(question, Pruning(flops=0.01), GENERATION)
    least = float(str(raised.value).split("at least ")[1].split(",")[0])
    answer = llava_engine.chat(question, Pruning(flops=least), GENERATION)
    assert answer.usage.layer_average == pytest.approx(2, abs=1)
    with pytest.raises(BudgetError, match=r"kv_mb=0\.0001 cannot be met: .* MiB, at keep"):
        llava_engine.chat(question, Pruning(kv_mb=0.0001), GENERATION)
    with pytest.raises(BudgetError, match="cannot be met"):
        # FastV sees all tokens in its first layers.
        llava_engine.chat(question, Pruning(method="fastv", flops=least), GENERATION)


def test_nothing_is_limited_where_nothing_can_be_pruned(llava_engine: Engine, picture: Picture) -> None:
    text = llava_engine.chat([user_message("Hello")], Pruning(flops=0.1), GENERATION)
    assert text.usage.cost_limit is None
    own = [user_message("What?", picture(60, 60, 1), keep=[0.5])]
    assert llava_engine.chat(own, Pruning(flops=0.1), GENERATION).usage.pictures[0].keep == 0.5


def test_milliseconds_need_a_measurement(llava_engine: Engine, question: list[Message]) -> None:
    with pytest.raises(InvalidInput, match=r"was not measured yet; run `tops doctor --measure --model "):
        llava_engine.chat(question, Pruning(first_token_ms=50), GENERATION)
    measured = CostModel(about=llava_engine.cost_key, before_ms=(5.0, 0.5), prefill_ms=(2.0, 1000.0), error=0.1)
    measured.save()
    unpruned = llava_engine.chat(question, Pruning(keep=1.0), GENERATION).flops.prefill
    llava_engine.forget()
    limit = 5 + 0.5 * 32 + 2 + 1e3 * 0.7 * unpruned / 1e9
    answer = llava_engine.chat(question, Pruning(first_token_ms=limit), GENERATION)
    by_flops = llava_engine.chat(question, Pruning(flops=0.7), GENERATION)
    assert answer.usage.stages == by_flops.usage.stages
    assert answer.usage.cost_limit is not None
    assert answer.usage.cost_limit.cost <= limit
    with pytest.raises(BudgetError, match=r"first_token_ms=20 cannot be met: this prompt costs at least .* ms"):
        llava_engine.chat(question, Pruning(first_token_ms=20), GENERATION)
    with pytest.raises(InvalidInput, match="first_token_ms is about a question that is asked alone"):
        llava_engine.batch([question, question], Pruning(first_token_ms=limit), GENERATION)


def test_doctor_measures_a_model(llava_engine: Engine, question: list[Message]) -> None:
    assert read_cost_model(llava_engine.cost_key) is None
    measured = measure_costs(llava_engine, rounds=1)
    measured.save()
    assert read_cost_model(llava_engine.cost_key) == measured
    assert min(*measured.before_ms, *measured.prefill_ms) >= 0
    answer = llava_engine.chat(question, Pruning(keep=1.0), GENERATION)
    assert measured.first_token_ms(32, answer.flops.prefill) > measured.first_token_ms(16, 0) > 0


@pytest.mark.full
def test_the_command_measures(tops: Tops, llava_folder: Path) -> None:
    result = tops("doctor", "--measure", "--model", llava_folder)
    assert result.code == 0, result.err
    assert "ms a visual token before the language model" in result.out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"flops": 0.3, "keep": 0.3}, "keep and flops both set the budget"),
        ({"flops": 0.3, "kv_mb": 64}, "kv_mb and flops both set the budget"),
        ({"first_token_ms": 9, "schedule": "0:64"}, "schedule and first_token_ms both set the budget"),
        ({"flops": 0.3, "keep": (0.1, 0.5)}, "keep and flops both set the budget"),
        ({"flops": 0.3, "allocation": "coverage"}, "flops limits the cost of each prompt"),
        ({"flops": 0.3, "method": "none"}, "chooses no tokens; flops needs one that does"),
        ({"flops": 1.3}, r"flops=1\.3 is not allowed"),
        ({"kv_mb": 0}, "kv_mb=0 is not allowed"),
        ({"first_token_ms": -1}, "first_token_ms=-1 is not allowed"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Pruning(**options)


def test_a_limit_is_a_budget_in_texts() -> None:
    pruning = Pruning.from_label("tops:alpha=0.4", "flops=0.3")
    assert pruning.flops == 0.3
    assert (pruning.label, pruning.budget_text) == ("tops:alpha=0.4", "flops=0.3")
    with pytest.raises(InvalidInput, match=r"'watts=3' is no budget; give a value of keep, or "):
        Pruning.from_label("tops", "watts=3")
    with pytest.raises(InvalidInput, match="is a limit of cost, and this needs a budget in tokens"):
        _ = pruning.budget

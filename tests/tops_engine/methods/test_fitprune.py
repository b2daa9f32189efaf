"""Test FitPrune: its score against transformers' own attention maps, its curves and budgets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.layer_tokens import grid_layout, layer_tokens
from tests.support.slow_reference import model_inputs_embeds
from tops_engine.budget import layer_average, tokens_per_layer
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.methods.fitprune import FitPrune, published_curve
from tops_engine.methods.recipe import Recipe
from tops_engine.settings import Generation, ModelSpec, Pruning

# fmt: off
PUBLISHED = [
    14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4,
    26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0,
]
# fmt: on


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": "somebody/small",
        "num_layers": 8,
        "keep": 0.5,
        "remaining": [1, 0.75, 0.5, 0.5, 0.375, 0.375, 0.25, 0.25],
        "divergence": 0.1,
        "tolerance": 0.2,
        "num_questions": 3,
    }
    return Recipe(**(values | changes))


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6), st.data())
def test_keeps_the_largest_products_of_the_two_sums(num_tokens: int, num_text: int, seed: int, data: Any) -> None:
    count = data.draw(st.integers(1, num_tokens))
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that ties are common and sums exact.
    text = torch.randint(0, 3, (num_text, num_tokens), generator=generator) / 4
    own = torch.randint(0, 3, (num_tokens, num_tokens), generator=generator) / 4
    rows = {("text", "previous", "max"): text, ("image", "previous", "max"): own}
    (selection,) = FitPrune().select_at_layer([layer_tokens(grid_layout(1, num_tokens), attention=rows)], [count])

    scores = [
        sum(row[token] for row in text.tolist()) * sum(row[token] for row in own.tolist())
        for token in range(num_tokens)
    ]
    expected = sorted(sorted(range(num_tokens), key=lambda token: (-scores[token], token))[:count])
    # The mean over n rows may round differently from the sum: only where two scores differ has one to be above.
    lost = set(range(num_tokens)) - set(selection.indices.tolist())
    assert len(selection.indices) == count
    assert min(scores[token] for token in expected) >= max((scores[token] for token in lost), default=0)


def test_the_score_is_that_of_the_layer_before(tmp_path: Path, picture: Picture) -> None:
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path, "mistral")), device="cpu", attention="eager"))
    family = engine.family
    messages = [user_message("What is shown?", picture(80, 60), picture(60, 60, 1))]
    prompt = family.prepare(read_conversation(messages))
    with torch.inference_mode():
        embeds = model_inputs_embeds(family, prompt)
        output = family.model.model.language_model(inputs_embeds=embeds, output_attentions=True)
    largest = output.attentions[3][0].amax(dim=0)
    pruning = Pruning(recipe=recipe(remaining=[1] * 4 + [0.5] * 4, keep=0.75, model=str(tmp_path)))
    answer = engine.chat(messages, pruning, Generation(max_tokens=1))
    is_text = torch.ones(len(prompt.input_ids), dtype=torch.bool)
    is_text[torch.cat([span.positions for span in prompt.spans])] = False
    assert [stage.layer for stage in answer.usage.stages] == [0, 4]
    for span, kept in zip(prompt.spans, answer.token_map.stages[1][1], strict=True):
        after = is_text & (torch.arange(len(is_text)) > span.positions[-1])
        from_text = largest[after][:, span.positions].sum(dim=0)
        from_image = largest[span.positions][:, span.positions].sum(dim=0) / len(span.positions)
        expected = (from_text * from_image).topk(8).indices.sort().values
        assert kept.tolist() == expected.tolist()
    assert answer.pruning["positions"] == "original"
    assert answer.pruning["recipe"]["model"] == str(tmp_path)


def test_the_published_recipe_is_a_preset() -> None:
    stages = Pruning(method="fitprune", schedule="fitprune/60").stages(576, 32)
    counts = tokens_per_layer(stages, 576, 32)
    remaining, expected = 576, []
    for deleted in PUBLISHED:
        expected.append(remaining)
        remaining -= deleted
    assert counts == expected
    assert remaining == counts[-1] == 127


def test_without_a_recipe_the_published_one_is_stretched_and_bent() -> None:
    assert published_curve(32) == [(576 - sum(PUBLISHED[:layer])) / 576 for layer in range(32)]
    # At twice and half the depth, the same depth has the same share.
    assert published_curve(64)[::2] == published_curve(32)
    assert published_curve(16) == published_curve(32)[::2]
    shape = tokens_per_layer(Pruning(method="fitprune", schedule="fitprune/60").stages(576, 32), 576, 32)
    average = sum(shape) / 32
    plain = tokens_per_layer(Pruning(method="fitprune", keep=average / 576).stages(576, 32), 576, 32)
    assert plain == shape


CURVES = st.lists(st.floats(1e-9, 0.99), min_size=1, max_size=40).map(lambda rest: [1.0, *sorted(rest, reverse=True)])


@given(CURVES, st.floats(0.001, 1), st.integers(1, 3000))
def test_a_recipe_meets_any_budget_it_can(remaining: list[float], keep: float, size: int) -> None:
    depth = len(remaining)
    method = FitPrune(recipe=recipe(remaining=remaining, num_layers=depth))
    try:
        stages = method.plan(size, depth, keep)
    except BudgetError as error:
        least = float(str(error).rpartition(" ")[2].rstrip("."))
        assert least > keep
        return
    counts = tokens_per_layer(stages, size, depth)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == size
    assert counts[-1] >= 1
    assert layer_average(stages, size, depth) == pytest.approx(keep * size, abs=0.5 / depth + 0.5 / depth + 1e-6)


def test_a_recipe_brings_method_and_budget_and_another_keep_bends_it() -> None:
    pruning = Pruning(recipe=recipe())
    assert (pruning.method, pruning.keep) == ("fitprune", 0.5)
    assert tokens_per_layer(pruning.stages(80, 8), 80, 8) == [80, 60, 40, 40, 30, 30, 20, 20]
    # Fractions, so that pictures of another size can use it.
    assert tokens_per_layer(pruning.stages(160, 8), 160, 8) == [160, 120, 80, 80, 60, 60, 40, 40]
    bent = Pruning(recipe=recipe(), keep=0.3)
    assert layer_average(bent.stages(80, 8), 80, 8) == pytest.approx(24, abs=0.07)
    assert Pruning(**json.loads(bent.model_dump_json())) == bent
    with pytest.raises(InvalidInput, match="both set the budget"):
        Pruning(recipe=recipe(), schedule="2:10")


def test_a_recipe_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    recipe().save(path)
    assert json.loads(path.read_text())["version"] == 1
    for source in (path, str(path), json.loads(path.read_text()), recipe()):
        pruning = Pruning(recipe=source)
        assert pruning.method_instance == FitPrune(recipe=recipe())
        assert Pruning(**json.loads(pruning.model_dump_json())).method_instance == pruning.method_instance
    assert Pruning(recipe=path).label == f"fitprune:recipe={path}"
    assert Pruning.from_label(f"fitprune:recipe={path}", 0.4).keep == 0.4
    assert Pruning(recipe=recipe()).label == "fitprune:recipe=for somebody/small"


def test_a_recipe_for_another_number_of_layers_is_refused(tmp_path: Path, picture: Picture) -> None:
    with pytest.raises(InvalidInput, match=r"fitted to somebody/small, which has 8 layers, and this model has 32"):
        Pruning(recipe=recipe()).stages(576, 32)


def test_a_recipe_for_another_model_warns(llava_engine: Engine, picture: Picture) -> None:
    messages = [user_message("What?", picture())]
    with pytest.warns(UserWarning, match="fitted to somebody/small"):
        llava_engine.chat(messages, Pruning(recipe=recipe()), Generation(max_tokens=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not JSON"),
        ("[]", "is not a recipe"),
        ('{"version": 2}', "version: Input should be 1"),
        ("{}", "model: Field required"),
    ],
)
def test_what_is_not_a_recipe_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "recipe.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        Pruning(recipe=path)


@pytest.mark.parametrize("remaining", [[1.0] * 7, [0.9] + [0.5] * 7, [1.0, 0.5, 0.6] + [0.5] * 5, [1.0] * 7 + [0.0]])
def test_a_curve_that_does_not_fall_from_one_is_refused(remaining: list[float]) -> None:
    with pytest.raises(InvalidInput, match="remaining"):
        Recipe.read(json.loads(recipe().model_dump_json()) | {"remaining": remaining})

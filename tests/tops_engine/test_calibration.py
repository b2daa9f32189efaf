"""Compare the search of a recipe with its definition written out on transformers' own attention maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.slow_reference import model_inputs_embeds
from tops_engine.budget import layer_average, tokens_per_layer
from tops_engine.calibration import fit_recipe
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.methods.recipe import Recipe
from tops_engine.settings import Generation, ModelSpec, Pruning

NUM_LAYERS = 8


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = save_llava(tmp_path_factory.mktemp("calibration"), "mistral")
    return Engine.load(ModelSpec(model=str(folder), device="cpu", attention="eager"))


@pytest.fixture(scope="module")
def questions(picture: Picture) -> list[list[Message]]:
    return [
        [user_message("What?", picture(60, 60))],
        [user_message("Compare the two pictures.", picture(90, 60, 1), picture(60, 60, 2))],
        [user_message("Where is the red circle?", picture(60, 80, 3))],
    ]


class Reading:
    """One question, read layer by layer: hidden states and the kept prompt positions."""

    def __init__(self, engine: Engine, messages: list[Message]) -> None:
        self.model: Any = engine.family.model.model.language_model
        prompt = engine.family.prepare(read_conversation(messages))
        self.spans = [span.positions for span in prompt.spans]
        self.is_text = torch.ones(len(prompt.input_ids), dtype=torch.bool)
        self.is_text[torch.cat(self.spans)] = False
        self.hidden = model_inputs_embeds(engine.family, prompt)
        self.remaining = torch.arange(len(prompt.input_ids))

    def run(self, layer: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Run a layer; return each image's kept positions and their attention from later text and from the image."""
        module, length = self.model.layers[layer], len(self.remaining)
        rope = self.model.rotary_emb(self.hidden, self.remaining[None])
        causal = torch.full((length, length), float("-inf")).triu(1)[None, None]
        normed = module.input_layernorm(self.hidden)
        _, weights = module.self_attn(normed, position_embeddings=rope, attention_mask=causal)
        largest = weights[0].amax(dim=0)
        self.hidden = module(self.hidden, attention_mask=causal, position_embeddings=rope)
        looks = []
        for span in self.spans:
            own = torch.isin(self.remaining, span)
            after = self.is_text[self.remaining] & (self.remaining > span[-1])
            cross = largest[after][:, own].sum(dim=0) / after.sum()
            looks.append((self.remaining[own], cross, largest[own][:, own].sum(dim=0) / own.sum()))
        return looks

    def drop(self, positions: Tensor) -> None:
        stays = ~torch.isin(self.remaining, positions)
        self.hidden, self.remaining = self.hidden[:, stays], self.remaining[stays]


def spared(attention: Tensor, whole: float, tolerance: float) -> set[int]:
    left, chosen = float(attention.sum()), set()
    for token in attention.argsort().tolist():
        left -= float(attention[token])
        if left < (1 - tolerance) * whole:
            break
        chosen.add(token)
    return chosen


@torch.inference_mode()
def plain_curve(engine: Engine, questions: Sequence[list[Message]], tolerance: float) -> list[float]:
    """Return the share of visual tokens that each layer sees, mean over images."""
    curves = []
    for messages in questions:
        whole, pruned = Reading(engine, messages), Reading(engine, messages)
        shares = [[1.0] for _ in pruned.spans]
        for layer in range(NUM_LAYERS - 1):
            masses = [(float(cross.sum()), float(own.sum())) for _, cross, own in whole.run(layer)]
            for share, (positions, cross, own), (text_mass, own_mass) in zip(
                shares, pruned.run(layer), masses, strict=True
            ):
                both = spared(cross, text_mass, tolerance) & spared(own, own_mass, tolerance)
                if len(both) == len(positions):
                    both.remove(int((cross * own).argmax()))
                pruned.drop(positions[sorted(both)])
                share.append((len(positions) - len(both)) / 16)
        curves += shares
    return [sum(shares) / len(curves) for shares in zip(*curves, strict=True)]


def plain_fit(engine: Engine, questions: Sequence[list[Message]], keep: float) -> tuple[float, list[float]]:
    """Return the smallest tolerance, to 1/128, that meets the budget, and its curve, constant once it is met."""
    low, high, best = 0.0, 1.0, [1.0]
    while high - low > 0.01:
        middle = (low + high) / 2
        curve = plain_curve(engine, questions, middle)
        reached = [
            layer
            for layer in range(NUM_LAYERS)
            if sum(curve[:layer]) + (NUM_LAYERS - layer) * curve[layer] <= keep * NUM_LAYERS
        ]
        if reached:
            high, best = middle, [curve[min(layer, reached[0])] for layer in range(NUM_LAYERS)]
        else:
            low = middle
    return high, best


@pytest.mark.parametrize("keep", [0.4, 0.75])
def test_the_recipe_is_that_of_the_smallest_tolerance(
    engine: Engine, questions: list[list[Message]], keep: float
) -> None:
    tolerance, curve = plain_fit(engine, questions, keep)
    recipe = fit_recipe(engine, questions, keep)

    assert recipe.tolerance == tolerance
    assert (recipe.model, recipe.num_layers, recipe.keep) == (engine.spec.model, NUM_LAYERS, keep)
    assert recipe.num_questions == 3
    # The search stops below the budget; one power brings all shares to it, none below a token.
    low, high = 0.0, 1.0
    for _ in range(60):
        power = (low + high) / 2
        bent = [max(1 / 16, share**power) for share in curve]
        low, high = (power, high) if sum(bent) > keep * NUM_LAYERS else (low, power)
    assert recipe.remaining == pytest.approx(bent, abs=1e-5)
    assert sum(recipe.remaining) / NUM_LAYERS == pytest.approx(keep, abs=1e-5)


@torch.inference_mode()
def test_divergence_is_how_far_attention_moves_when_the_recipe_runs(
    engine: Engine, questions: list[list[Message]]
) -> None:
    recipe = fit_recipe(engine, questions, 0.4)
    counts = tokens_per_layer(Pruning(recipe=recipe).stages(16, NUM_LAYERS), 16, NUM_LAYERS)
    changes = []
    for messages in questions:
        whole, pruned = Reading(engine, messages), Reading(engine, messages)
        for layer in range(NUM_LAYERS - 1):
            for (_, cross, own), (positions, pruned_cross, pruned_own) in zip(
                whole.run(layer), pruned.run(layer), strict=True
            ):
                changes.append(abs(float(pruned_cross.sum() / cross.sum()) - 1))
                changes.append(abs(float(pruned_own.sum() / own.sum()) - 1))
                lowest = (pruned_cross * pruned_own).argsort()[: len(positions) - counts[layer + 1]]
                pruned.drop(positions[lowest])
    assert recipe.divergence == pytest.approx(sum(changes) / len(changes), abs=1e-4)
    assert recipe.divergence > 0


def test_more_pruning_diverges_more(engine: Engine, questions: list[list[Message]]) -> None:
    recipes = [fit_recipe(engine, questions, keep) for keep in (1.0, 0.8, 0.3)]
    assert recipes[0].remaining == (1.0,) * NUM_LAYERS
    assert recipes[0].divergence == 0
    assert recipes[0].divergence < recipes[1].divergence < recipes[2].divergence


def test_a_fitted_recipe_meets_its_budget_on_other_pictures_too(
    engine: Engine, llava_next_engine: Engine, questions: list[list[Message]], picture: Picture
) -> None:
    recipe = fit_recipe(engine, questions, 0.45)
    for chosen in (engine, llava_next_engine):
        recipe = Recipe(**recipe.model_dump() | {"model": chosen.spec.model})
        answer = chosen.chat([user_message("?", picture(90, 60))], Pruning(recipe=recipe), Generation(max_tokens=3))
        total = answer.usage.visual_tokens
        assert answer.usage.layer_average == pytest.approx(0.45 * total, abs=0.5)
        stages = Pruning(recipe=recipe).stages(total, NUM_LAYERS)
        assert answer.usage.layer_average == layer_average(stages, total, NUM_LAYERS)


def test_the_least_budget_is_one_token_behind_the_first_layer(engine: Engine, questions: list[list[Message]]) -> None:
    with pytest.raises(BudgetError, match=r"1 of 8 layers see all 16 visual tokens; use at least 0\.1797\.$"):
        fit_recipe(engine, questions, 0.15)
    remaining = fit_recipe(engine, questions, 0.18).remaining
    assert [round(16 * share) for share in remaining] == [16] + [1] * 7


@pytest.mark.parametrize("keep", [0.0, 1.5, 64, True])
def test_only_fractions_are_budgets_of_recipes(engine: Engine, questions: list[list[Message]], keep: Any) -> None:
    with pytest.raises(InvalidInput, match="a recipe needs a fraction above 0"):
        fit_recipe(engine, questions, keep)


def test_questions_without_pictures_fit_nothing(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="questions about pictures; give at least one"):
        fit_recipe(engine, [[user_message("Hello?")]], 0.5)


def test_the_engine_answers_as_before(engine: Engine, questions: list[list[Message]]) -> None:
    before = engine.batch(questions, Pruning(keep=0.4), Generation(max_tokens=4))
    fit_recipe(engine, questions[:1], 0.4)
    after = engine.batch(questions, Pruning(keep=0.4), Generation(max_tokens=4))
    assert [answer.token_ids for answer in before] == [answer.token_ids for answer in after]


def test_a_recipe_is_small_and_readable(engine: Engine, questions: list[list[Message]], tmp_path: Path) -> None:
    recipe = fit_recipe(engine, questions, 0.5)
    recipe.save(tmp_path / "recipe.json")
    assert (tmp_path / "recipe.json").stat().st_size < 1000
    assert Recipe.read(tmp_path / "recipe.json") == recipe

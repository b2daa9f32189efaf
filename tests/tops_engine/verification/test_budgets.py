"""Test that a check of kept tokens tells right from wrong ones."""

import pytest
import torch

from tops_engine import selection
from tops_engine.engine import Engine
from tops_engine.methods.tops import TOPS
from tops_engine.verification import budgets
from tops_engine.verification.budgets import Choice, check_budget
from tops_engine.verification.pictures import conversations
from tops_engine.verification.problems import problems_of
from tops_engine.verification.rounding import SELECTION_ROUNDING


@pytest.fixture
def choice() -> Choice:
    generator = torch.Generator().manual_seed(0)
    features, relevance = torch.randn(40, 8, generator=generator), torch.rand(40, generator=generator)
    return Choice(features, relevance, selection.greedy_select_reference(features, relevance, 12))


def test_the_plain_selection_is_the_same_and_has_no_shortfall(choice: Choice) -> None:
    stage = budgets._selected_stage(choice, TOPS())
    assert (stage.num_tokens, stage.num_kept, stage.same, stage.shortfall) == (40, 12, True, 0.0)
    assert selection.selection_shortfall(choice.features, choice.relevance, choice.order) <= 1e-12


def test_another_token_has_a_shortfall(choice: Choice) -> None:
    other = next(token for token in range(40) if token not in choice.order)
    stage = budgets._selected_stage(Choice(choice.features, choice.relevance, [*choice.order[:-1], other]), TOPS())
    assert not stage.same
    assert stage.shortfall > SELECTION_ROUNDING


def test_a_wrong_selection_of_the_engine_is_a_problem(llava_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = conversations()["one picture"]
    right = check_budget(llava_engine, asked, 0.5)
    assert right.held
    assert problems_of([], [right], []) == []
    monkeypatch.setattr(selection, "greedy_select", lambda features, _, counts, **__: torch.arange(max(counts))[None])
    wrong = check_budget(llava_engine, asked, 0.5)
    assert not wrong.held
    assert "kept other tokens" in problems_of([], [wrong], [])[0]

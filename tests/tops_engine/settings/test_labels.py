"""Prunings named in a text: labels and budgets separated by commas."""

from typing import Any

import pytest

from tops_engine.errors import InvalidInput
from tops_engine.settings import Pruning
from tops_engine.settings.labels import read_labels, read_prunings


def test_texts_name_every_method_at_every_budget() -> None:
    prunings = read_prunings(" tops, random:selection_seed=3,", "0.5,,64")
    assert [(pruning.label, pruning.keep) for pruning in prunings] == [
        ("tops", 0.5),
        ("random:selection_seed=3", 0.5),
        ("tops", 64),
        ("random:selection_seed=3", 64),
    ]
    runs_alone = read_labels("all")
    assert {"tops", "divprune", "fastv"} <= set(runs_alone)
    assert "none" not in runs_alone
    assert read_labels("random,all") == ["random", *runs_alone]


@pytest.mark.parametrize(
    ("methods", "keep", "words"),
    [
        (" , ", "0.5", "Name at least one method"),
        ("tops", ",", "Give at least one budget"),
        ("magic", "0.5", "There is no method 'magic'"),
        ("tops", "0.5,1.5", "keep='1.5' is not allowed"),
    ],
)
def test_texts_that_name_no_pruning_are_refused(methods: str, keep: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_prunings(methods, keep)


def test_a_composition_is_a_label_like_any_other() -> None:
    labels = [pruning.label for pruning in read_prunings("divprune+fastv:layer=3,scope:merge=true", "0.5")]
    assert labels == ["divprune+fastv:layer=3", "scope:merge=true"]


BUDGETS = {"keep", "schedule", "flops", "kv_mb", "first_token_ms"}
#: Of each option that is not a budget: a value that is not its default, with what it needs.
OPTIONS: dict[str, dict[str, Any]] = {
    "method": {"method": "divprune"},
    "confident": {"confident": 0.7, "keep": (0.1, 0.5)},
    "confident_over": {"confident_over": 3, "keep": (0.1, 0.5)},
    "confident_by": {"confident_by": "mean", "keep": (0.1, 0.5)},
    "allocation": {"allocation": "coverage"},
    "budget_per": {"budget_per": "prompt"},
    "keep_min": {"keep_min": 0.1, "allocation": "coverage"},
    "keep_max": {"keep_max": 0.9, "allocation": "coverage"},
    "mean_over": {"mean_over": "stream", "allocation": "coverage"},
    "merge": {"merge": True},
    "rectify": {"rectify": "restore"},
    "dedup": {"dedup": "exact"},
    "tower_keep": {"tower_keep": 0.5},
    "tower_layer": {"tower_layer": 3, "tower_keep": 0.5},
    "positions": {"positions": "original"},
}


@pytest.mark.parametrize("name", sorted(Pruning.model_fields.keys() - BUDGETS))
def test_a_label_says_every_option(name: str) -> None:
    given: dict[str, Any] = {"method": "tops", "keep": 0.3, "stages": "first"} | OPTIONS[name]
    if name == "method":
        del given["stages"]
    pruning = Pruning(**given)
    assert Pruning.from_label(pruning.label, pruning.keep) == pruning
    without = Pruning(**{key: value for key, value in given.items() if key != name})
    assert pruning.label != without.label

"""Prunings named in a text: labels and budgets separated by commas."""

import pytest

from tops_engine.errors import InvalidInput
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

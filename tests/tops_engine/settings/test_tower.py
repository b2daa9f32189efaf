"""Test the options of the vision tower: what fits together, and their words in a label."""

import pytest

from tops_engine.errors import InvalidInput
from tops_engine.settings import Pruning
from tops_engine.tower import WHOLE_TOWER, TowerOptions


def test_the_tower_runs_as_it_is_by_default() -> None:
    assert Pruning().tower_options == WHOLE_TOWER
    assert Pruning().label == "tops"


def test_a_label_holds_what_differs_and_reads_back() -> None:
    pruning = Pruning(keep=0.2, dedup="exact", tower_keep=0.5, tower_layer=3)
    assert pruning.label == "tops:dedup=exact:tower_keep=0.5:tower_layer=3"
    assert Pruning.from_label(pruning.label, 0.2) == pruning
    assert pruning.tower_options == TowerOptions("exact", 0.5, 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dedup": "all"}, r"^dedup='all' is not allowed: Input should be 'none', 'exact' or 'patches'\.$"),
        ({"tower_keep": 0}, r"^tower_keep=0 is not allowed: Input should be greater than 0\.$"),
        ({"tower_keep": 1.5}, r"^tower_keep=1\.5 is not allowed: Input should be less than or equal to 1\.$"),
        ({"tower_layer": 2}, r"^tower_layer says where tower_keep drops patches; set tower_keep below 1\.$"),
        ({"method": "fastv", "tower_keep": 0.5}, r"prunes before the language model; 'fastv' does not\.$"),
        ({"method": "none", "keep": 1.0, "tower_keep": 0.5}, r"prunes before the language model; 'none' does not\.$"),
        (
            {"method": "pooling", "tower_keep": 0.5},
            r"^Method 'pooling' needs all tokens of a picture",
        ),
        ({"allocation": "coverage", "tower_keep": 0.5}, r"; leave out allocation\.$"),
    ],
)
def test_what_does_not_fit_is_one_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Pruning(**options)  # type: ignore[arg-type]

"""Test the split into questions that a smaller picture answers and others."""

import pytest

from tops_engine.evaluation.halves import halves_table, split_by_resize
from tops_engine.evaluation.intervals import share_interval
from tops_engine.evaluation.prunings import UNPRUNED, pruning_name, with_smaller_pictures
from tops_engine.settings import Pruning

TOPS, RANDOM, RESIZE = (Pruning(method=method, keep=0.2) for method in ("tops", "random", "resize"))
OTHER = Pruning(method="tops", keep=0.5)
SCORES = {
    UNPRUNED: [1.0, 1.0, 1.0, 0.0, 1.0, 0.0],
    TOPS: [1.0, 0.0, 1.0, 0.0, 1.0, 1.0],
    RANDOM: [0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
    OTHER: [1.0] * 6,
    RESIZE: [1.0, 1.0, 0.0, 0.0, 0.0, 0.0],
}
PICTURES = ["a", "a", "b", "b", "c", "d"]
NAMES = {pruning: pruning_name(pruning) for pruning in SCORES}


def test_every_pruning_of_the_budget_is_scored_on_both_halves() -> None:
    found = {one.name: one for one in split_by_resize(SCORES, PICTURES, NAMES)}
    assert list(found) == ["unpruned", "tops 0.2", "random 0.2", "resize 0.2"], "another budget has no smaller picture"
    for pruning, name in ((UNPRUNED, "unpruned"), (TOPS, "tops 0.2"), (RANDOM, "random 0.2")):
        easy, hard = found[name].easy, found[name].hard
        assert easy is not None
        assert hard is not None
        assert (easy.questions, hard.questions) == (2, 4)
        for half, places in ((easy, [0, 1]), (hard, [2, 3, 4, 5])):
            values = [SCORES[pruning][place] == 1.0 for place in places]
            expected = share_interval(values, [PICTURES[place] for place in places])
            assert (half.percent, half.low, half.high) == (expected.value, expected.low, expected.high)
    of_resize = found["resize 0.2"]
    assert of_resize.easy is not None
    assert of_resize.hard is not None
    assert (of_resize.easy.percent, of_resize.hard.percent) == (100.0, 0.0)


def test_scores_between_right_and_wrong_count_from_one_half_on() -> None:
    scores = {UNPRUNED: [1.0, 0.6, 0.3], RESIZE: [0.3, 0.5, 0.6]}
    unpruned, _ = split_by_resize(scores, ["a", "b", "c"], NAMES)
    assert unpruned.easy is not None
    assert unpruned.hard is not None
    assert (unpruned.easy.questions, unpruned.hard.questions) == (2, 1)
    assert unpruned.easy.percent == pytest.approx(45.0)
    assert unpruned.easy.cells() == ("2", "45.0", "-"), "two pictures have no interval"


def test_a_half_without_questions_is_empty() -> None:
    scores = {UNPRUNED: [1.0, 1.0], RESIZE: [1.0, 1.0]}
    halves = split_by_resize(scores, ["a", "b"], NAMES)
    assert [one.hard for one in halves] == [None, None]
    assert "0" in str(halves_table(halves, "right answers"))


def test_a_smaller_picture_is_added_for_each_plain_budget() -> None:
    others = [Pruning(keep=(0.1, 0.5)), Pruning(schedule="0:24,4:8"), Pruning(flops=0.5)]
    added = with_smaller_pictures([TOPS, RANDOM, OTHER, *others], one_size=True)[6:]
    assert [pruning_name(one) for one in added] == ["resize:enlarge=true 0.2", "resize:enlarge=true 0.5"]


def test_without_a_smaller_picture_there_is_nothing_to_split() -> None:
    scores = {pruning: values for pruning, values in SCORES.items() if pruning != RESIZE}
    assert split_by_resize(scores, PICTURES, NAMES) == []
    assert halves_table([], "right answers") is None

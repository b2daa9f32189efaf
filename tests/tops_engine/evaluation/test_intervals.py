"""Paired intervals: against the textbook's formula, for pairs that agree, and for questions that share a picture."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from tops_engine.evaluation.intervals import (
    FEWEST_PICTURES,
    Interval,
    difference_interval,
    in_words,
    mean_interval,
    relative_interval,
    share_interval,
    wilson,
)


def bounds(interval: Interval) -> tuple[float, float]:
    """Return the bounds of an interval of enough pictures."""
    assert interval.bounds is not None
    return interval.bounds


def width(interval: Interval) -> float:
    low, high = bounds(interval)
    return high - low


def test_the_mean_of_independent_values_has_the_interval_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, size=800)
    interval = mean_interval(values.tolist(), range(800))
    half = 1.96 * values.std(ddof=1) / np.sqrt(800)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        base = (generator.random(300) < 0.8).astype(float)
        scores = base * (generator.random(300) < 0.9)
        interval = relative_interval(scores.tolist(), base.tolist(), range(300))
        covered += not interval.differs_from(90.0)
    assert 88 <= covered <= 100


def losses(generator: Generator, number: int) -> NDArray[np.float64]:
    """Draw differences in loss, one a picture."""
    return generator.normal(size=number)


def answers(generator: Generator, number: int) -> NDArray[np.float64]:
    """Draw differences in right answers, of four questions a picture."""
    return generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=(number, 4)).sum(axis=1)


@pytest.mark.parametrize("number", [8, 15])
@pytest.mark.parametrize("draw", [losses, answers])
def test_intervals_of_few_pictures_cover_the_truth_as_often(
    number: int, draw: Callable[[Generator, int], NDArray[np.float64]]
) -> None:
    """Quantiles at 2.5 and 97.5 % cover it in 88 % of the cases at 8 pictures."""
    generator, covered = np.random.default_rng(6), 0
    for _ in range(400):
        covered += not mean_interval(draw(generator, number).tolist(), range(number)).differs_from(0.0)
    assert 0.92 <= covered / 400 <= 0.98


def test_equal_answers_differ_by_nothing() -> None:
    right = [1.0, 0.0, 1.0, 1.0] * 2
    assert difference_interval(right, right, right, "abcdefgh") == Interval(0.0, 0.0, 0.0)
    assert relative_interval(right, right, "abcdefgh") == Interval(100.0, 100.0, 100.0)
    assert in_words(difference_interval(right, right, right, "abcdefgh")) == "same within noise"


def test_questions_that_share_a_picture_do_not_count_as_independent() -> None:
    values = np.random.default_rng(3).normal(size=50)
    once = mean_interval(values.tolist(), range(50))
    repeated = mean_interval(np.repeat(values, 20).tolist(), np.repeat(np.arange(50), 20).tolist())
    assert width(repeated) == pytest.approx(width(once))
    independent = mean_interval(np.repeat(values, 20).tolist(), range(1000))
    assert width(independent) < 0.3 * width(once)


def test_pairing_removes_what_makes_a_question_hard_for_all() -> None:
    generator = np.random.default_rng(4)
    base = np.ones(400)
    hard = generator.random(400) < 0.5
    first, second = np.where(hard, 0.0, 1.0), np.where(hard, 0.0, 1.0)
    second[np.flatnonzero(~hard)[:12]] = 0.0
    paired = difference_interval(first.tolist(), second.tolist(), base.tolist(), range(400))
    assert paired.value == pytest.approx(3.0)
    assert width(paired) < 4
    assert in_words(paired) == "better"
    assert in_words(paired, higher_is_better=False) == "worse"


def test_a_table_says_the_same_each_time() -> None:
    values = np.random.default_rng(5).normal(size=30).tolist()
    assert mean_interval(values, range(30)) == mean_interval(values, range(30))


@pytest.mark.parametrize("number", [1, 2, FEWEST_PICTURES - 1])
def test_too_few_pictures_tell_nothing(number: int) -> None:
    """Equal differences have no spread, but a few pictures that agree are no proof."""
    interval = mean_interval([1.0] * 3 * number, [*range(number)] * 3)
    assert interval == Interval(1.0, None, None)
    assert in_words(interval) == "too few pictures"
    assert not interval.differs_from(0.0)
    assert str(interval) == "1.0 [-]"
    one_more = mean_interval([1.0] * FEWEST_PICTURES, range(FEWEST_PICTURES))
    assert in_words(one_more) == "better"


def test_no_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one question"):
        mean_interval([], [])


def test_wilsons_interval() -> None:
    """Compare with the roots of (rate - p)^2 = z^2 p (1 - p) / n, which define the interval."""
    for successes, trials in ((0, 7), (7, 7), (198, 200), (1, 3)):
        low, high = wilson(successes / trials, trials)
        for bound in (low, high):
            z = (successes / trials - bound) ** 2 * trials
            assert z == pytest.approx(1.96**2 * bound * (1 - bound), abs=1e-6)
        assert 0 <= low <= successes / trials <= high <= 1


def test_a_share_of_answers_to_one_question_a_picture_has_wilsons_interval() -> None:
    agreed = [True] * 18 + [False] * 2
    assert share_interval(agreed, range(20)) == Interval(90.0, *(100 * bound for bound in wilson(0.9, 20)))


def test_questions_about_one_picture_count_as_fewer() -> None:
    """With every question asked four times, the interval is that of asking once, whatever the share."""
    for agreed in ([True] * 12 + [False] * 8, [True] * 20):
        once = share_interval(agreed, range(20))
        repeated = share_interval([one for one in agreed for _ in range(4)], [n // 4 for n in range(80)])
        assert bounds(repeated) == pytest.approx(bounds(once))
        assert bounds(share_interval(agreed, [0] * 20))[0] < bounds(once)[0]


def test_the_interval_of_a_share_covers_the_truth_as_often_as_it_says() -> None:
    """Draw pictures of five questions each, whose chances differ by picture."""
    generator, hits = np.random.default_rng(3), 0
    for _ in range(400):
        chances = generator.beta(8, 2, size=60)
        agreed = (generator.random((60, 5)) < chances[:, None]).flatten()
        interval = share_interval(agreed.tolist(), np.repeat(np.arange(60), 5).tolist())
        hits += not interval.differs_from(80.0)
    assert 0.92 <= hits / 400 <= 0.98

"""Confidence intervals of figures that several prunings have on the same questions.

Every pruning answers the same questions, so differences are paired: what makes a question hard for all of them cancels.
Questions about one picture are not independent of each other, so whole pictures are resampled (cluster bootstrap,
Davison and Hinkley, "Bootstrap Methods and their Application", 1997, sections 2.4 and 3.8).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
#: With fewer pictures there is no interval: resampling a few of them says little about all others.
FEWEST_PICTURES = 8

#: A figure of sums over pictures: float64 [..., columns] -> [...].
Figure = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval.

    Attributes
    ----------
    value : the figure on all questions.
    low, high : the bounds; None if there are fewer than ``FEWEST_PICTURES`` pictures.
    """

    value: float
    low: float | None
    high: float | None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Return both bounds, or None if there are too few pictures to know them."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def text(self, digits: int, between: str = " to ") -> str:
        """Return the bounds as a table shows them, and ``-`` if they are not known."""
        return "-" if self.bounds is None else between.join(f"{bound:.{digits}f}" for bound in self.bounds)

    def differs_from(self, other: float) -> bool:
        """Return whether ``other`` lies outside the interval; no value lies outside of one that is not known."""
        return self.bounds is not None and not self.bounds[0] <= other <= self.bounds[1]

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.text(1, ', ')}]"


def relative_interval(scores: Sequence[float], base: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """Return 100 times the sum of scores over the sum of base scores, such as relative accuracy in percent.

    Parameters
    ----------
    scores, base : of each question, such as 1 for a right answer and 0 for a wrong one.
    clusters : the picture that each question is about.
    """
    sums = cluster_sums([scores, base], clusters)
    return _interval(sums, lambda totals: 100 * totals[..., 0] / np.maximum(totals[..., 1], 1e-9))


def difference_interval(
    scores: Sequence[float], against: Sequence[float], base: Sequence[float], clusters: Sequence[Hashable]
) -> Interval:
    """Return the difference of two relative scores, in points of percent; see :func:`relative_interval`."""
    sums = cluster_sums([scores, against, base], clusters)
    return _interval(sums, lambda totals: 100 * (totals[..., 0] - totals[..., 1]) / np.maximum(totals[..., 2], 1e-9))


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """Return the mean of paired differences, one a question, such as the increase of a loss."""
    sums = cluster_sums([values, [1.0] * len(values)], clusters)
    return _interval(sums, lambda totals: totals[..., 0] / np.maximum(totals[..., 1], 1e-9))


def share_interval(agreed: Sequence[bool], clusters: Sequence[Hashable]) -> Interval:
    """Return a share in percent, such as that of equal answers, with Wilson's interval.

    Wilson's interval is accurate for shares near 1 and for few questions, where resampling is not. Questions about one
    picture count as fewer than they are: their number is divided by the design effect (Kish, "Survey Sampling", 1965).
    Where that effect cannot be measured (all questions agree, or are about one picture), each picture counts once.

    Parameters
    ----------
    agreed : of each question.
    clusters : the picture that each question is about.
    """
    share, num_questions = sum(agreed) / len(agreed), len(agreed)
    sums = cluster_sums([[float(one) - share for one in agreed]], clusters)
    variance = num_questions * share * (1 - share)
    size = float(len(sums))
    if variance and len(sums) > 1:
        size = min(num_questions, num_questions * variance / float((sums**2).sum()))
    low, high = wilson(share, size)
    return Interval(100 * share, 100 * low, 100 * high)


def wilson(share: float, num_trials: float, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's confidence interval of a share of independent trials, 95 % by default."""
    spread = z * z / num_trials
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / num_trials + spread / (4 * num_trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def in_words(difference: Interval, higher_is_better: bool = True) -> str:
    """Return what a difference says: which side is ahead, that noise explains it, or that nobody can know yet."""
    if difference.bounds is None:
        return "too few pictures"
    if not difference.differs_from(0.0):
        return "same within noise"
    return "better" if (difference.value > 0) == higher_is_better else "worse"


def cluster_sums(columns: Sequence[Sequence[float]], clusters: Sequence[Hashable]) -> NDArray[np.float64]:
    """Return the sum of each column over each cluster: float64 [clusters, columns]."""
    if not clusters:
        raise ValueError("An interval needs at least one question.")
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    places = np.array([numbers[cluster] for cluster in clusters])
    sums = np.zeros((len(numbers), len(columns)))
    for column, values in enumerate(columns):
        np.add.at(sums[:, column], places, np.asarray(values, dtype=np.float64))
    return sums


def resampled_totals(sums: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """Return the totals of resampled clusters: float64 [clusters, columns] -> [RESAMPLES, columns].

    The seed is fixed, so that a table says the same each time it is made.
    """
    num_clusters = len(sums)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=RESAMPLES)
    return counts @ sums


def interval_of(value: float, draws: NDArray[np.float64], num_clusters: int) -> Interval:
    """Return a figure with its interval.

    Resampled figures of few pictures lie too close together. So the quantiles are further out than 2.5 and 97.5 %, at
    the levels that make the interval of a mean as wide as Student's (the expanded percentile interval of Hesterberg,
    arXiv 1411.5279).

    Parameters
    ----------
    draws : the figure over resampled clusters, float64 [RESAMPLES].
    num_clusters : how many clusters were resampled.
    """
    if num_clusters < FEWEST_PICTURES:
        return Interval(value, None, None)
    spread = math.sqrt(num_clusters / (num_clusters - 1)) * _student_quantile(num_clusters - 1)
    level = NormalDist().cdf(-spread)
    low, high = np.quantile(draws, (level, 1 - level))
    return Interval(value, float(low), float(high))


def _student_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's distribution, right to 0.001 from 7 degrees of freedom on.

    This is the expansion of Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def _interval(sums: NDArray[np.float64], figure: Figure) -> Interval:
    return interval_of(float(figure(sums.sum(axis=0))), figure(resampled_totals(sums)), len(sums))

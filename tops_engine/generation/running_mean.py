"""The running mean of an allocation over a stream of pictures."""

import statistics
from collections import deque
from collections.abc import Sequence

from tops_engine import selection
from tops_engine.answers.report import StreamUsage

#: So many earlier pictures are compared with a new one.
REMEMBERED = 256


class RunningMean:
    """What an allocation gave to the pictures of a stream so far.

    New pictures get the tokens that they would get if all remembered pictures were asked about together with them. What
    earlier pictures left unspent is divided among all of these as well. The sum of all counts never exceeds the sum of
    all means.
    """

    def __init__(self) -> None:
        self._remembered: deque[tuple[Sequence[float], float, int]] = deque(maxlen=REMEMBERED)
        self._shares: list[float] = []
        self._allowed = 0.0
        self._spent = 0
        self._tokens = 0

    def allocate(
        self, curves: Sequence[Sequence[float]], means: Sequence[float], least: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        """Return the tokens of new pictures.

        Parameters
        ----------
        curves, least : as for :func:`tops_engine.selection.allocate`.
        means : the number of tokens of each picture that ``keep`` stands for.
        sizes : the visual tokens of each picture.
        """
        credit = self._allowed - self._spent
        earlier = list(self._remembered)
        total = int(sum(mean for _, mean, _ in earlier) + sum(means) + credit + 1e-9)
        together = [*(curve for curve, _, _ in earlier), *curves]
        counts = selection.allocate(together, total, [*(one for _, _, one in earlier), *least])[len(earlier) :]
        affordable = int(sum(means) + credit + 1e-9)
        if sum(counts) > affordable:
            counts = selection.allocate(curves, affordable, least)
        self._remembered.extend(zip(curves, means, least, strict=True))
        self._shares += [count / size for count, size in zip(counts, sizes, strict=True)]
        self._allowed += sum(means)
        self._spent += sum(counts)
        self._tokens += sum(sizes)
        return counts

    @property
    def usage(self) -> StreamUsage:
        """What the pictures of the stream got."""
        return StreamUsage(
            pictures=len(self._shares),
            mean=self._spent / self._tokens if self._tokens else 1.0,
            least=min(self._shares, default=1.0),
            most=max(self._shares, default=1.0),
            deviation=statistics.pstdev(self._shares) if self._shares else 0.0,
        )

"""Evidence that a mean has fallen below a level, from scores that come one by one, with a stated rate of false alarms.

Scores are between 0 and 1; nothing else is assumed of them. Two tools:

- :class:`Detector`, an e-detector of the Shiryaev-Roberts kind (Shin, Ramdas and Rinaldo 2024, "E-detectors"): the sum,
  over all moments at which a change may have begun, of what a bettor would have won since by betting that scores are
  below the level. While the mean of each score, given those before it, is not below the level, the sum minus the
  number of scores is a supermartingale. So, for whatever reason one stops looking, the chance of ever reaching the
  limit within N scores is at most N / limit, and the mean number of scores to a false alarm is at least the limit.
  The moment since which the best of these bets has won most is where the change is supposed to have begun: for one bet,
  that is Page's cumulative sum (1954).
- :func:`confidence_interval`, the betting confidence sequence of Waudby-Smith and Ramdas (2024, "Estimating means of
  bounded random variables by betting"), which holds at all times at once.

A sequential probability ratio test or a cumulative sum with a tuned limit would need the distribution of the scores,
which differs from task to task and from scene to scene.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Detector", "confidence_interval"]

_STAKES = np.array([0.05, 0.1, 0.2, 0.4, 0.7, 0.95])
"""Bets, as fractions of the largest bet that cannot lose all money. Small ones find small losses in noisy scores."""
_GRID = np.linspace(0, 1, 501)
"""Means that an interval may contain."""


class Detector:
    """Detector of a mean below a level. It goes on for ever: what was good before a change is no credit after it.

    Args:
        level: mean that scores have at least, as long as nothing is wrong; above 0, at most 1.
    """

    def __init__(self, level: float) -> None:
        self._level = level
        # At a level of 1 every score below 1 is proof, up to rounding.
        self._bets = _STAKES / max(1 - level, 1e-3)
        self._wealth = np.zeros(len(_STAKES))
        # Logarithm of what each bet has won since the moment since which it has won most, and that moment.
        self._most = np.zeros(len(_STAKES))
        self._begins = np.zeros(len(_STAKES))

    def add(self, score: float, at: float = 0.0) -> float:
        """Take in one score, and return the evidence up to now.

        Args:
            score: from 0 to 1.
            at: time of the score, in any unit.
        """
        gains = np.maximum(1 + self._bets * (self._level - min(max(score, 0.0), 1.0)), 0.0)
        self._begins[self._most <= 0] = at
        with np.errstate(divide="ignore"):
            self._most = np.maximum(self._most, 0) + np.log(gains)
        # Bounded, because nobody needs to tell such amounts of evidence apart.
        self._wealth = np.minimum((1 + self._wealth) * gains, 1e30)
        return self.evidence

    @property
    def evidence(self) -> float:
        """Evidence that the mean is below the level now. Its expectation is at most the number of scores if it is
        not."""
        return float(self._wealth.mean())

    @property
    def began(self) -> float:
        """Time of the score with which a change, if there is one, has probably begun."""
        return float(self._begins[self._most.argmax()])


def confidence_interval(scores: Sequence[float], chance: float = 0.05) -> tuple[float, float]:
    """Return the lower and upper end of an interval that contains the mean of scores.

    The interval may be looked at after every score, and all of these intervals together contain the mean with
    probability 1 - ``chance``.

    Args:
        scores: scores from 0 to 1, in the order in which they came.
        chance: probability that the mean is ever outside.
    """
    if not len(scores):
        return 0.0, 1.0
    values = np.clip(np.asarray(scores, np.float64), 0, 1)
    stakes = _predicted_stakes(values, chance)
    # [scores, means]; stakes are cut so that no bet can lose more than half of the money.
    with np.errstate(divide="ignore"):
        up = np.minimum(stakes[:, None], 0.5 / _GRID)
        down = np.minimum(stakes[:, None], 0.5 / (1 - _GRID))
    apart = values[:, None] - _GRID
    above, below = (np.log1p(bet * apart).sum(0) for bet in (up, -down))
    inside = np.maximum(above, below) < np.log(2 / chance)
    if not inside.any():
        # Only where the order of scores is far from random.
        return float(values.mean()), float(values.mean())
    return float(_GRID[inside].min()), float(_GRID[inside].max())


def _predicted_stakes(values: NDArray[np.float64], chance: float) -> NDArray[np.float64]:
    """Return the bet on each score, ``[N]``, which depends on the scores before it only."""
    count = np.arange(1, len(values) + 1)
    means = (0.5 + values.cumsum()) / (count + 1)
    spreads = (0.25 + ((values - means) ** 2).cumsum()) / (count + 1)
    before = np.concatenate([[0.25], spreads[:-1]])
    found: NDArray[np.float64] = np.sqrt(2 * np.log(2 / chance) / (before * count * np.log1p(count)))
    return found

"""Evidence of a lost accuracy: how rarely it is wrong, how soon it is right, and intervals that hold at all times."""

from __future__ import annotations

import numpy as np
import pytest

from gemel.check.drift.evidence import Detector, confidence_interval


def runs_to_alarm(chance_of_one: float, limit: float, most: int, seed: int, level: float = 0.95) -> int:
    """Return after how many scores of 0 or 1 the evidence reaches a limit; ``most`` if it does not until then."""
    detector = Detector(level)
    scores = np.random.default_rng(seed).random(most) < chance_of_one
    return next((n for n, score in enumerate(scores, 1) if detector.add(float(score)) >= limit), most)


def test_false_alarms_are_as_rare_as_stated() -> None:
    # At the very level, at most N / limit of all series of N scores reach the limit: 0.2 here.
    alarms = [runs_to_alarm(0.95, 1000, 200, seed) < 200 for seed in range(300)]
    assert 0 < sum(alarms) <= 0.2 * len(alarms)


def test_a_change_is_found_soon_however_long_all_was_well() -> None:
    for before in (0, 20, 2000):
        detector = Detector(0.95)
        for _ in range(before):
            detector.add(1.0)
        assert detector.evidence < 10
        found = next(count for count in range(1, 100) if detector.add(0.7) >= 20_000)
        assert found <= 8


def test_a_change_is_dated() -> None:
    """Scores of 0 or 1 are the hardest to date. A date is rather late than early, so the old scene is left out."""
    off = []
    for seed in range(40):
        detector, random = Detector(0.95), np.random.default_rng(seed)
        for at in range(300):
            if detector.add(float(random.random() < (0.99 if at < 200 else 0.75)), at) >= 20_000:
                break
        off.append(detector.began - 200)
    assert np.median(off) <= 4 and max(off) < 60 and min(off) > -20


def test_evidence_goes_down_when_all_is_well_again() -> None:
    detector = Detector(0.95)
    for _ in range(3):
        detector.add(0.5)
    high = detector.evidence
    for _ in range(60):
        detector.add(1.0)
    assert detector.evidence < high / 10


@pytest.mark.parametrize("level", [0.01, 0.5, 1.0])
def test_any_level_and_any_score(level: float) -> None:
    detector = Detector(level)
    for score in (0.0, 1.0, -5.0, 7.0, 0.5) * 200:
        assert 0 <= detector.add(score) < float("inf")


def test_intervals_hold_at_all_times() -> None:
    random, misses = np.random.default_rng(0), 0
    for _ in range(60):
        scores = random.beta(9, 1, 60).tolist()
        misses += any(not low <= 0.9 <= high for low, high in (confidence_interval(scores[:n]) for n in (5, 20, 60)))
    assert misses <= 5


def test_intervals_shrink() -> None:
    assert confidence_interval([]) == (0.0, 1.0)
    widths = [high - low for low, high in (confidence_interval([0.9, 1.0] * count) for count in (2, 10, 100))]
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.1
    low, high = confidence_interval([1.0] * 200)
    assert 0.95 < low < high == 1.0

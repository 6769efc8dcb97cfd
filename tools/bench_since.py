"""Measure how well the begin of a loss is dated, on simulated scores. Writes a table into docs/drift.md.

.venv/bin/python tools/bench_since.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from documents import write_between

from gemel.check.drift.evidence import Detector
from gemel.check.drift.judge import DriftLimits

_SERIES, _BEFORE, _MOST = 400, 100, 600
"""Numbers of simulated series, of scores before the loss, and of scores of a series at most."""
_TARGET = 0.95

Draw = Callable[[np.random.Generator, float], float]


def _hit(random: np.random.Generator, mean: float) -> float:
    """Return 1 or 0, as for one object that is found or not."""
    return float(random.random() < mean)


def _spread(random: np.random.Generator, mean: float) -> float:
    """Return a beta-distributed score, as of several objects or of embeddings."""
    return float(random.beta(20 * mean, 20 * (1 - mean)))


def dates(draw: Draw, before: float, after: float) -> tuple[list[int], list[float]]:
    """Return for each series the scores from the loss to the verdict, and by how many scores the begin is late."""
    limits = DriftLimits()
    found, late = [], []
    for seed in range(_SERIES):
        detector, random = Detector(limits.level(_TARGET)), np.random.default_rng(seed)
        for number in range(_MOST):
            score = draw(random, before if number < _BEFORE else after)
            if detector.add(score, number) >= limits.revert:
                break
        found.append(number + 1 - _BEFORE)
        late.append(detector.began - _BEFORE)
    return found, late


def main() -> None:
    """Print the table and write it into the document."""
    lines = [
        f"| {_SERIES} simulated series, {_BEFORE} good samples, then a loss | found after, median |"
        " begin is late by, median (5 to 95 %) |",
        "|---|--:|--:|",
    ]
    for name, draw, before, after in (
        ("scores of 0 or 1", _hit, 0.99, 0.75),
        ("scores of 0 or 1", _hit, 0.99, 0.5),
        ("beta-distributed scores", _spread, 0.98, 0.85),
        ("beta-distributed scores", _spread, 0.98, 0.7),
    ):
        found, late = dates(draw, before, after)
        low, middle, high = np.quantile(late, (0.05, 0.5, 0.95))
        lines.append(
            f"| {name}, mean {before:.0%} before, {after:.0%} after | {np.median(found):.0f} |"
            f" {middle:.0f} ({low:.0f} to {high:.0f}) |"
        )
    print("\n".join(lines))
    write_between(Path(__file__).resolve().parent.parent / "docs" / "drift.md", "since", "\n".join(lines))


if __name__ == "__main__":
    main()

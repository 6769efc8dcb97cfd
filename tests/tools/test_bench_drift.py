"""Benchmark of drift on made answers: what it counts as a drift, as a false revert, and as a loss of some size."""

from __future__ import annotations

import numpy as np
import pytest
from bench_drift import Scene, _lossy, measure
from drift_scenes import DISTURBANCES, Answered
from rich.console import Console

from gemel.runtime.decode.results import Detection, Embedding, Result

PEOPLE: list[Result] = [
    tuple(Detection((10.0 * x, 0.0, 10.0 * x + 9, 20.0), 0.9, "person") for x in range(1 + number % 3))
    for number in range(6)
]


def scene(name: str, answers: list[Result]) -> Scene:
    return Scene(name, "people", "detection", 0.95, Answered(answers, answers, PEOPLE))


def test_what_is_counted() -> None:
    blind: list[Result] = [()] * len(PEOPLE)
    found = measure([scene("none", PEOPLE), scene("night", blind)], 2, 2, Console(quiet=True))
    (drift,) = found["drifts"]
    assert (drift["scene"], drift["accuracy"], len(drift["delays"])) == ("night", 0.0, 2)
    assert all(delay is not None and delay <= 20 for delay in drift["delays"])
    assert [(row["scene"], row["reverts"]) for row in found["calm"]] == [("none", 0), ("at the edge", 0)]
    assert [row["loss"] for row in found["losses"]][::6] == [0.08, 0.7]
    assert found["losses"][-1]["found"] == 1.0


@pytest.mark.parametrize("task", ["detection", "embedding"])
def test_made_losses_are_as_large_as_asked_for(task: str) -> None:
    random = np.random.default_rng(0)
    right = 3 + random.normal(size=(200, 16))
    given = right + 0.1 * random.normal(size=right.shape)
    vectors: list[list[Result]] = [[Embedding(tuple(each)) for each in side.tolist()] for side in (given, right)]
    calm = scene("none", PEOPLE)
    if task == "embedding":
        calm = Scene("none", "looks", "embedding", 0.95, Answered(vectors[0], vectors[0], vectors[1]))
    accuracy = _lossy(calm, 0.2, random).accuracy
    assert accuracy is not None and accuracy == pytest.approx(0.8, abs=0.05)


def test_disturbances_keep_the_size_of_a_frame() -> None:
    image = np.full((48, 64, 3), 120, np.uint8)
    for disturb in DISTURBANCES.values():
        found = disturb(image, np.random.default_rng(0))
        assert found.shape == image.shape
        assert found.dtype == np.uint8

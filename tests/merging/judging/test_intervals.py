"""Test the intervals of relative accuracy: bounds that hold, and that say so where images are few."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.merging.judging.intervals import Interval, images_for, relative_interval
from gemel.merging.judging.judgement import Judgement, same_as_original
from gemel.runtime.decode.evidence import Ratios, mean_of

ALL = 100


def right(count: int, images: int = ALL) -> Ratios:
    """Return evidence of a model that answers the first ``count`` of some images right."""
    return mean_of(np.arange(images) < count)


@pytest.mark.parametrize("images", [1, 10, 60, 300])
def test_images_without_a_mistake_prove_as_much_as_the_exact_binomial_bound(images: int) -> None:
    found = relative_interval(right(images, images), right(images, images))
    assert (found.images, found.value, found.high) == (images, 1, 1)
    assert found.low == found.best == pytest.approx(0.05 ** (1 / images), abs=0.06 if images <= 10 else 0.005)


def test_one_image_proves_nothing() -> None:
    assert relative_interval(right(1, 1), right(1, 1)).low < 0.1


def test_the_lower_end_holds_nineteen_times_of_twenty() -> None:
    rng = np.random.default_rng(0)
    truth, missed = 0.96, 0
    for _ in range(200):
        found = relative_interval(mean_of(rng.random(200) < truth), right(200, 200), seed=int(rng.integers(1 << 30)))
        assert found.low <= found.value <= found.high
        missed += found.low > truth
    # At a true rate of 5 %, more than 20 of 200 happen once in 800 times.
    assert missed <= 20


def shuffled(values: NDArray[np.bool_], seed: int) -> Ratios:
    """Return evidence of a model that is right on as many images, but on others."""
    return mean_of(np.random.default_rng(seed).permutation(values))


def test_mistakes_on_the_same_images_cancel_out() -> None:
    answers = np.arange(400) < 320
    same = relative_interval(mean_of(answers), mean_of(answers))
    other = relative_interval(shuffled(answers, 1), mean_of(answers))
    assert same.value == other.value == 1
    assert same.low > 0.98 > other.low
    assert other.high > 1.03


def test_images_with_nothing_to_judge_by_do_not_count() -> None:
    seen = np.array([[1.0]] * 20 + [[0.0]] * 180)
    found = relative_interval(Ratios(seen, seen), Ratios(seen, seen))
    assert found.images == 20
    assert found.low == pytest.approx(1 - 3 / 21, abs=0.03)


def test_an_original_that_is_never_right_proves_nothing() -> None:
    found = relative_interval(right(50), right(0))
    assert (found.value, found.low) == (0, 0)


def test_a_better_model_has_a_relative_accuracy_above_one() -> None:
    found = relative_interval(right(90), right(80))
    assert found.value == pytest.approx(1.125)
    assert 1 < found.low < found.value < found.high


def part(value: float, low: float, best: float = 0.99) -> Interval:
    """Return an interval of 200 images."""
    return Interval(200, value, low, 1.0, best)


@pytest.mark.parametrize(
    ("judgement", "passes"),
    [
        (Judgement(0.9, 1.0, part(0.97, 0.951)), True),
        (Judgement(0.9, 1.0, part(0.97, 0.949)), False),
        # The model works on its own images, and in no other way elsewhere.
        (Judgement(0.9, 1.0, part(1.0, 0.98), part(0.9, 0.8), part(1.0, 0.98)), False),
        (Judgement(0.9, 1.0, part(1.0, 0.98), None, part(0.88, 0.8)), False),
        (Judgement(0.9, 1.0, part(1.0, 0.98), None, part(0.98, 0.96)), True),
        # Three objects on the mix are too few for a bound: found ones do not harm, a missed one does.
        (Judgement(0.9, 1.0, part(1.0, 0.98), part(1.0, 0.3, 0.3), part(0.98, 0.96)), True),
        (Judgement(0.9, 1.0, part(1.0, 0.98), part(0.67, 0.2, 0.3), part(0.98, 0.96)), False),
        # Too few images of its own prove nothing.
        (Judgement(1.0, 1.0, part(1.0, 0.9, 0.9)), False),
    ],
)
def test_every_part_must_reach_the_target(judgement: Judgement, passes: bool) -> None:
    assert judgement.passes(0.95) is passes


def test_original_weights_pass_every_target() -> None:
    assert same_as_original(0.7, True).passes(1.0)
    assert "unchanged" in str(same_as_original(0.7, False))


def test_what_would_help_is_said() -> None:
    few = relative_interval(right(40, 40), right(40, 40))
    text = Judgement(1.0, 1.0, few).advice(0.95)
    assert text.startswith("n=40: the interval 0.9") and "60 images" in text and "more frames" in text
    assert "below 1" in Judgement(1.0, 1.0, few).advice(1.0)
    assert Judgement(1.0, 1.0, relative_interval(right(80, 80), right(80, 80))).advice(0.95) == ""
    assert images_for(0.98) == 150

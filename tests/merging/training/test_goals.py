"""Tests of decisions during retraining that follow from measured accuracies."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from gemel.merging.training.goals import loss_weights
from gemel.merging.training.subjects import Subject

MakeSubject = Callable[..., Subject]


def test_models_that_are_further_from_their_goals_count_more(subject: MakeSubject) -> None:
    taught = [subject(name) for name in "abc"]
    found = loss_weights(taught, {"a": 0.95, "b": 0.5, "c": 0.95})
    assert found["a"] == found["c"] < 1 < found["b"]
    assert sum(found.values()) == pytest.approx(3)
    # A model far from its goal does not silence the others, and an accuracy of 0 is no division by zero.
    found = loss_weights(taught, {"a": 0.95, "b": 0.0, "c": 0.95})
    assert 0.2 < found["a"] < found["b"] < 5


def test_what_a_target_allows_is_the_yardstick(subject: MakeSubject) -> None:
    strict, mild = ([subject(name, targets=(target,)) for name in "ab"] for target in (0.98, 0.9))
    found = [loss_weights(taught, {"a": 0.98, "b": 0.96}) for taught in (strict, mild)]
    assert found[0]["b"] / found[0]["a"] == pytest.approx(math.e)
    assert found[1]["b"] / found[1]["a"] == pytest.approx(math.exp(0.2))
    # A target of 1 allows no loss at all.
    whole = loss_weights([subject(name, targets=(1.0,)) for name in "ab"], {"a": 1.0, "b": 0.99})
    assert whole["b"] / whole["a"] == pytest.approx(math.e)


def test_of_two_queries_of_a_model_the_one_that_is_further_counts(subject: MakeSubject) -> None:
    taught = [subject("a", targets=(0.5, 0.99)), subject("b")]
    found = loss_weights(taught, {"a": 0.6, "a1": 0.6, "b": 0.95})
    assert found["a"] > found["b"]

"""What was made of a search's state, remembered for the next one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import torch

from gemel.merging.forms.form_map import Form, FormMap
from gemel.merging.layers.sharing import Use
from gemel.merging.output.remembered import Remembered
from gemel.merging.search.found import Found

WEIGHTS = {name: {"0.weight": torch.ones(1)} for name in "ab"}


@pytest.fixture
def numbers() -> Iterator[int]:
    return count()


def test_the_same_weights_and_forms_are_asked_once(numbers: Iterator[int]) -> None:
    remembered = Remembered[int]()
    found = Found(dict(WEIGHTS))
    assert [remembered.of(each, lambda: next(numbers)) for each in (found, found, Found(dict(WEIGHTS)))] == [0, 0, 0]


def test_other_weights_or_forms_are_asked_anew(numbers: Iterator[int]) -> None:
    remembered = Remembered[int]()
    forms = FormMap().joined({Use("a", "0.weight"): Form(8)})
    equal = {name: {"0.weight": torch.ones(1)} for name in "ab"}
    states = (WEIGHTS, {**WEIGHTS, "b": equal["b"]}, equal)
    made = [remembered.of(Found(dict(each)), lambda: next(numbers)) for each in states]
    made += [remembered.of(Found(dict(equal), forms=forms), lambda: next(numbers))]
    assert made == [0, 1, 2, 3]


def test_a_dictionary_that_the_search_changes_later_is_seen(numbers: Iterator[int]) -> None:
    remembered, found = Remembered[int](), Found(dict(WEIGHTS))
    assert remembered.of(found, lambda: next(numbers)) == 0
    found.states["a"] = {"0.weight": torch.zeros(1)}
    assert remembered.of(found, lambda: next(numbers)) == 1

"""Classification: scores, several labels, binary outputs and class numbers; the choice of classes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from decoding import Array, result_of

from gemel.bundles.decode_specs import ClassificationDecode
from gemel.runtime.decode import DecodeContext
from gemel.runtime.decode.class_names import ClassNames
from gemel.runtime.decode.results import Class


def classes_of(values: Array, spec: dict[str, Any], **settings: Any) -> list[tuple[str, int, float]]:
    """Return label, number and rounded score of each reported class."""
    result = result_of(ClassificationDecode.model_validate(spec), {"out": values}, **settings)
    assert isinstance(result, tuple)
    items = [item for item in result if isinstance(item, Class)]
    assert len(items) == len(result)
    return [(item.label, item.class_id, round(item.score, 3)) for item in items]


LOGITS = np.log(np.array([[0.1, 0.6, 0.3]], np.float32))


def test_softmax_is_applied_once_and_never_to_probabilities() -> None:
    best = [("1", 1, 0.6), ("2", 2, 0.3)]
    assert classes_of(LOGITS + 500, {"classes": 3, "top_k": 2}) == best
    assert classes_of(np.exp(LOGITS), {"classes": 3, "top_k": 2, "activation": "none"}) == best
    # Maps of one pixel.
    assert classes_of(LOGITS[..., None, None], {"classes": 3, "top_k": 2}) == best


def test_sigmoid() -> None:
    values = np.array([[-1e4, 0, 1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = classes_of(values, {"classes": 3, "activation": "sigmoid"})
    assert found == [("2", 2, 1.0), ("1", 1, 0.5), ("0", 0, 0.0)]


def test_several_labels() -> None:
    values = np.array([[0.9, 0.2, 0.6, 0.5, 0.7, 0.8, 0.99]], np.float32)
    spec = {"classes": 7, "activation": "none", "multi_label": True, "top_k": 2}
    labels = list("abcdefg")
    # All that are likely, more than top_k.
    assert [label for label, _, _ in classes_of(values, spec, labels=labels)] == ["g", "a", "f", "e", "c"]
    assert [label for label, _, _ in classes_of(values, spec, labels=labels, threshold=0.85)] == ["g", "a"]
    assert classes_of(values * 0, spec) == []
    chosen = classes_of(values, spec, labels=labels, classes=["c", "b", "0"])
    assert chosen == [("a", 0, 0.9), ("c", 2, 0.6)]


@pytest.mark.parametrize("activation", ["sigmoid", "none", "softmax"])
def test_binary(activation: str) -> None:
    score = np.array([[0.8]], np.float32)
    spec = {"classes": 1, "activation": activation}
    values = score if activation == "none" else np.log(score / (1 - score))
    assert classes_of(values, spec) == [("yes", 1, 0.8), ("no", 0, 0.2)]
    assert classes_of(values[0], spec | {"top_k": 1}) == [("yes", 1, 0.8)]
    assert classes_of(values, spec, labels=["shut", "open"], threshold=0.5) == [("open", 1, 0.8)]
    other = 1 - score if activation == "none" else -values
    assert classes_of(other, spec, threshold=0.5) == [("no", 0, 0.8)]
    # One label is the name of what the score is of.
    assert classes_of(other, spec, labels=["nude"]) == [("nude", 0, 0.2)]
    assert classes_of(other, spec, labels=["nude"], threshold=0.5) == []


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32])
def test_class_numbers(shape: tuple[int, ...], dtype: type) -> None:
    values: Array = np.full(shape, 2, dtype)
    spec = {"classes": 5, "class_numbers": True}
    assert classes_of(values, spec, labels=["a", "b", "c"]) == [("c", 2, 1.0)]
    assert classes_of(values, spec, classes=["1"]) == []


def test_scores_that_are_not_numbers_give_no_classes() -> None:
    values = np.full((1, 3), np.nan, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for activation in ("softmax", "sigmoid", "none"):
            assert classes_of(values, {"classes": 3, "activation": activation}) == []
            assert classes_of(values[:, :1], {"classes": 1, "activation": activation}) == []
        assert classes_of(values + np.inf, {"classes": 3}) == []
        assert classes_of(values, {"classes": 3, "class_numbers": True}) == []


def no_tensor(name: str) -> Array:
    raise AssertionError(name)


def test_names_and_numbers() -> None:
    names = ClassNames(DecodeContext(no_tensor, ("car", "bus", "car", "7"), classes=("car", "7", "9", "tram", "-1")), 1)
    assert [names.name(index) for index in (0, 3, 8)] == ["car", "7", "9"]
    assert names.number(0) == 1
    # A label goes before a number: "7" is class 3, and not the class with the number 7. "9" is the class with index 8.
    assert np.flatnonzero(names.wanted(np.arange(10))).tolist() == [0, 2, 3, 8]
    assert ClassNames(DecodeContext(no_tensor)).wanted(np.arange(3)).all()

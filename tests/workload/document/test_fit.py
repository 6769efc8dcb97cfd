"""Checks of a query against its model: classes that have no label, and mean and std that do not fit the model's"
" scale."""

from __future__ import annotations

from typing import Any

import pytest

from gemel.bundles.manifest import InputSpec
from gemel.errors import WorkloadError
from gemel.workload.document.fit import check_fit
from gemel.workload.document.schema import Query


def query(model: dict[str, Any] | None = None, **changes: Any) -> Query:
    fields = {"name": "door", "feed": "yard", "task": "detection", "model": {"onnx": "a.onnx", **(model or {})}}
    return Query.model_validate({**fields, **changes})


@pytest.mark.parametrize(
    ("asked", "labels"),
    [
        (query(), None),
        (query(classes=["car", 1]), ("car", "bus")),
        (query(classes=[17]), None),
        (query({"input": {"mean": 0.5, "std": 0.5}}), None),
    ],
)
def test_fits(asked: Query, labels: tuple[str, ...] | None) -> None:
    check_fit(asked, InputSpec(size=(8, 8)), labels)


@pytest.mark.parametrize(
    ("asked", "labels", "scale", "message"),
    [
        (query(classes=["cr"]), ("car", "bus"), 1 / 255, "classes: 'cr' is not among the labels; did you mean 'car'?"),
        (
            query(classes=["car"]),
            None,
            1 / 255,
            "classes: 'car' is no class number, and there are no labels; give the query labels",
        ),
        (
            query({"input": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}),
            None,
            1.0,
            "model.input.mean: 0.485 cannot be meant with scale 1: pixels are then from 0 to 255; leave scale out"
            " (1/255)",
        ),
    ],
)
def test_does_not_fit(asked: Query, labels: tuple[str, ...] | None, scale: float, message: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        check_fit(asked, InputSpec(size=(8, 8), scale=scale), labels)
    assert str(caught.value) == f"query door: {message}"

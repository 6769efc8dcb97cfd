"""Results that are read back from their JSON form, and values that are no result."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from gemel.runtime.decode.agreement import TaskName
from gemel.runtime.decode.read_results import result_from_json
from gemel.runtime.decode.results import (
    Class,
    Detection,
    Embedding,
    Mask,
    Raw,
    Result,
    Segmentation,
    SegmentedClass,
    Text,
    result_to_json,
)

MASK = Mask.of(np.eye(4))


@pytest.mark.parametrize(
    ("task", "result"),
    [
        ("detection", (Detection((1.0, 2.0, 3.5, 4.0), 0.5, "person", 1),)),
        ("detection", (Detection((1.0, 2.0, 3.0, 4.0), 0.5, "face", landmarks=((1.0, 2.5),)),)),
        ("pose", (Detection((1.0, 2.0, 3.0, 4.0), 0.5, "person", keypoints=((1.0, 2.0, 0.25),)),)),
        ("segmentation", (Detection((1.0, 2.0, 3.0, 4.0), 0.5, "person", mask=MASK),)),
        ("segmentation", Segmentation((4, 4), (SegmentedClass("road", 2, MASK),))),
        ("classification", (Class("cat", 0.75, 3), Class("dog", 0.25))),
        ("embedding", Embedding((0.5, -1.0))),
        ("ocr", Text("GO 4711", 0.5)),
        ("detection", ()),
    ],
)
def test_there_and_back(task: TaskName, result: Result) -> None:
    assert result_from_json(task, json.loads(json.dumps(result_to_json(result)))) == result


def test_raw_outputs() -> None:
    values = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    found = result_from_json("raw", json.loads(json.dumps(result_to_json(Raw({"y": values})))))
    assert isinstance(found, Raw)
    assert found.outputs["y"].dtype == np.float32 and np.array_equal(found.outputs["y"], values)
    with pytest.raises(ValueError, match="output y was too large to be written"):
        result_from_json("raw", result_to_json(Raw({"y": np.zeros(5000)})))


def test_numbers_that_json_does_not_have() -> None:
    found = result_from_json("embedding", [None, 1.0])
    assert isinstance(found, Embedding) and math.isnan(found.values[0])


@pytest.mark.parametrize(
    ("task", "value"),
    [
        ("detection", None),
        ("detection", "people"),
        ("detection", [7]),
        ("detection", [{"box": [1, 2, 3], "score": 0.5, "label": "x"}]),
        ("detection", [{"box": [1, 2, 3, "4"], "score": 0.5, "label": "x"}]),
        ("detection", [{"box": [1, 2, 3, 4], "score": True, "label": "x"}]),
        ("detection", [{"box": [1, 2, 3, 4], "score": 0.5, "label": 5}]),
        ("detection", [{"box": [1, 2, 3, 4], "label": "x"}]),
        ("detection", [{"box": [1, 2, 3, 4], "score": 1, "label": "x", "mask": {"size": [4, 4], "counts": "zz"}}]),
        ("detection", [{"box": [1, 2, 3, 4], "score": 1, "label": "x", "keypoints": [[1, 2]]}]),
        ("segmentation", {"size": [4, 4], "classes": [{"label": "road", "class_id": 1}]}),
        ("classification", [{"score": 0.5}]),
        ("embedding", {"values": [1]}),
        ("embedding", [0.0] * 100_001),
        ("ocr", {"text": 7, "score": 0.5}),
        ("ocr", ["x"]),
        ("raw", [1]),
        ("raw", {"y": {"dtype": "float32", "shape": [3], "values": [1, 2]}}),
        ("raw", {"y": {"dtype": "no such type", "shape": [1], "values": [1]}}),
        ("raw", {"y": {"dtype": "O", "shape": [1], "values": [{}]}}),
    ],
)
def test_what_is_no_result(task: TaskName, value: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        result_from_json(task, value)

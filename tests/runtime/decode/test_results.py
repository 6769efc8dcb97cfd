"""Results in the form that results.jsonl has."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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

BOX = (1.04, 2.0, 3.0, 4.0)
MASK = Mask.of(np.eye(2))
MASK_JSON = {"size": [2, 2], "counts": MASK.counts}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ((), []),
        ((Detection(BOX, 0.87654, "cat"),), [{"box": [1.0, 2.0, 3.0, 4.0], "score": 0.8765, "label": "cat"}]),
        ((Class("cat", 0.5),), [{"label": "cat", "score": 0.5}]),
        ((Class("cat", 0.5, 0),), [{"label": "cat", "score": 0.5, "class_id": 0}]),
        (Embedding((0.12345678, -1.0)), [0.123457, -1.0]),
        (Text("Tür", 0.91234), {"text": "Tür", "score": 0.9123}),
        (
            Segmentation((2, 2), (SegmentedClass("road", 3, MASK), SegmentedClass("sky", -1, MASK))),
            {
                "size": [2, 2],
                "classes": [
                    {"label": "road", "class_id": 3, "mask": MASK_JSON},
                    {"label": "sky", "mask": MASK_JSON},
                ],
            },
        ),
    ],
)
def test_json(result: Result, expected: Any) -> None:
    assert result_to_json(result) == expected
    assert json.loads(json.dumps(result_to_json(result))) == expected


def test_parts_of_a_detection_are_there_if_the_model_gives_them() -> None:
    face = Detection(BOX, 0.5, "face", 0, landmarks=((1.26, 2.0),))
    body = Detection(BOX, 0.5, "person", 1, keypoints=((1.26, 2.0, 0.123456),), mask=MASK)
    found = result_to_json((face, body))
    assert found[0] == {
        "box": [1.0, 2.0, 3.0, 4.0],
        "score": 0.5,
        "label": "face",
        "class_id": 0,
        "landmarks": [[1.3, 2.0]],
    }
    assert found[1].keys() == {"box", "score", "label", "class_id", "keypoints", "mask"}
    assert found[1]["keypoints"] == [[1.3, 2.0, 0.1235]]
    assert found[1]["mask"] == MASK_JSON


def test_raw_outputs() -> None:
    small = np.array([[0.1, 1 / 3], [1e-8, 3]], np.float32)
    outputs: dict[str, NDArray[Any]] = {
        "small": small,
        "numbers": np.array([[1, 2**40]]),
        "flags": np.array([True]),
        "one": np.float16(0.1).reshape(()),
        "large": np.zeros((1, 4097), np.float32),
    }
    found = result_to_json(Raw(outputs), lambda name, values: f"{name} {values.size}")
    assert found["small"]["dtype"] == "float32"
    assert found["small"]["shape"] == [2, 2]
    # As few digits as tell float32 values apart.
    assert found["small"]["values"] == [0.1, 0.33333334, 1e-8, 3.0]
    assert (np.array(found["small"]["values"], np.float32) == small.reshape(-1)).all()
    assert found["numbers"] == {"dtype": "int64", "shape": [1, 2], "values": [1, 2**40]}
    assert found["flags"] == {"dtype": "bool", "shape": [1], "values": [True]}
    assert found["one"] == {"dtype": "float16", "shape": [], "values": [0.1]}
    assert found["large"] == {"dtype": "float32", "shape": [1, 4097], "file": "large 4097"}
    # Without a place for files, the values of large outputs are left out.
    assert result_to_json(Raw(outputs))["large"] == {"dtype": "float32", "shape": [1, 4097]}
    json.dumps(found, allow_nan=False)

"""Models of a workload are converted together, and what they share stays one tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from converted import SHARED, convert, proto
from precision_cases import asked, initializer, write_workload

from gemel.bundles.blob import tensor_id
from gemel.calib import measure
from gemel.calib.request import PrecisionSettings


def test_all_models_are_int8_and_share_what_they_shared(pair: Path) -> None:
    made = convert(write_workload(pair, asked("a"), asked("b")))
    assert {name: model.precision for name, model in made.models.items()} == {"a": "int8", "b": "int8"}
    for name in SHARED:
        first, second = (initializer(made.graph(model), name) for model in "ab")
        assert first.dtype == np.int8
        assert tensor_id(first) == tensor_id(second)
    assert made.told == [
        "ranges a: min-max of 30 frames",
        "ranges b: min-max of 30 frames",
        "convert a: int8, 0 of 4 layers stay float32",
        "convert b: int8, 0 of 4 layers stay float32",
    ]
    assert (made.record.method, made.record.kept, made.record.refused) == ("min-max", {}, {})
    for name in "ab":
        model, query_ = made.record.models[name], made.record.queries[name]
        assert (model.precision, model.frames) == ("int8", 30)
        assert {"image", "logits"} <= model.peaks.keys()
        # A normalised pixel is at most (1 - 0.406) / 0.225.
        assert 2 < model.peaks["image"] < 2.65
        assert (query_.precision, query_.images, query_.labelled) == ("int8", 15, True)
        assert (query_.fp32, query_.accuracy) == (1, 1)
        assert query_.bytes < 0.4 * query_.fp32_bytes
        assert query_.fp32_bytes == sum(each.nbytes for each in initializers(made.before[name]))
        assert query_.bytes == sum(each.nbytes for each in initializers(made.graph(name)))
        assert min(made.times[name]) > 0
    assert made.record.models["a"].data != made.record.models["b"].data


def initializers(graph: ir.Model) -> list[np.ndarray[Any, Any]]:
    return [initializer(graph, name) for name in graph.graph.initializers]


def test_without_a_wish_nothing_happens(pair: Path) -> None:
    made = convert(write_workload(pair, asked("a"), asked("b")), PrecisionSettings())
    assert (made.found, made.told) == (None, [])
    assert all(proto(made.graph(name)) == proto(made.before[name]) for name in "ab")


@pytest.mark.parametrize("other", ["fp32", "fp16"])
def test_a_kernel_that_is_wanted_in_two_forms_stays_float32_in_both(pair: Path, other: str) -> None:
    made = convert(write_workload(pair, asked("a"), asked("b", precision=other)))
    assert {name: model.precision for name, model in made.models.items()} == {"a": "int8", "b": other}
    for name in SHARED:
        assert made.types("a")[name] == made.types("b")[name] == "float32"
        np.testing.assert_array_equal(initializer(made.graph("a"), name), initializer(made.before["a"], name))
    # Kernels that a model does not share have the precision that was asked for.
    assert made.types("a")["depthwise.weight"] == "int8"
    assert made.types("b")["depthwise.weight"] == {"fp32": "float32", "fp16": "float16"}[other]
    wanted = {tensor_id(np.ascontiguousarray(initializer(made.before["a"], name))) for name in SHARED}
    assert made.record.kept == dict.fromkeys(wanted, f"{other} in b, int8 in a")
    assert ("b" in made.record.models) == (other == "fp16")
    if other == "fp32":
        assert proto(made.graph("b")) == proto(made.before["b"])
    assert "convert a: int8, 3 of 4 layers stay float32: head.weight, pointwise.weight, stem.weight" in made.told


def test_fp16_converts_all_and_needs_no_ranges(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "peaks_of", None)
    made = convert(write_workload(pair, asked("a"), asked("b")), PrecisionSettings("fp16"))
    assert {*made.types("a").values(), *made.types("b").values()} == {"float16"}
    for name in "ab":
        assert made.record.models[name].peaks == {}
        found = made.record.queries[name]
        assert (found.precision, found.accuracy) == ("fp16", 1)
        assert name not in made.times
        assert found.bytes < 0.51 * found.fp32_bytes


def test_every_query_of_a_model_is_judged(pair: Path) -> None:
    again = {**asked("a"), "name": "again", "data": {part: f"data/a/{part}" for part in ("val", "train")}}
    made = convert(write_workload(pair, asked("a"), {**again, "data": None}))
    assert set(made.models) == {"a"}
    # The model is calibrated on frames of both queries: labelled images, and frames of the feed.
    assert made.record.models["a"].frames > 30
    assert {name: each.labelled for name, each in made.record.queries.items()} == {"a": True, "again": False}

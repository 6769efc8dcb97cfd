"""Layers and models that lose too much accuracy in lower precision stay float32, in all models that share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from converted import convert, proto
from precision_cases import asked, initializer, write_workload
from safetensors.torch import load_file, save_file

from gemel.bundles.blob import tensor_id
from gemel.calib import measure
from gemel.calib.judge import Judge
from gemel.calib.request import PrecisionSettings
from gemel.errors import RetrainError
from gemel.merging.tasks import task_of


def test_the_floor_of_a_merged_query_is_recorded(pair: Path) -> None:
    settings = PrecisionSettings("int8", "min-max", merged={"a": 0.953})
    made = convert(write_workload(pair, asked("a", target=0.95)), settings)
    assert made.record.queries["a"].floor == pytest.approx(0.95 / 0.953)


def test_a_layer_that_cannot_bear_it_stays_float32_in_all_models(pair: Path) -> None:
    """Scores of the classes differ by a thousandth, so that in int8 they are the same."""
    state = load_file(pair / "a.safetensors")
    state["head.weight"] = state["head.weight"] * 1e-3 + torch.linspace(1, 2, 32)
    state["head.bias"] = state["head.bias"] * 1e-3
    save_file(state, pair / "a.safetensors")
    state_b = load_file(pair / "b.safetensors")
    state_b["head.weight"] = state["head.weight"]
    save_file(state_b, pair / "b.safetensors")
    made = convert(write_workload(pair, asked("a"), asked("b", data={"train": "frames", "val": "frames"})))
    head = tensor_id(np.ascontiguousarray(initializer(made.before["a"], "head.weight")))
    assert made.record.kept.keys() >= {head}
    assert made.record.kept[head] == "head.weight of a cannot bear it"
    assert made.types("a")["head.weight"] == made.types("b")["head.weight"] == "float32"
    assert made.types("a")["stem.weight"] == "int8"
    assert made.record.queries["a"].accuracy >= made.record.queries["a"].floor
    assert any(line.startswith("judge a: ") and line.endswith("99.00% wanted") for line in made.told)


def test_a_model_that_cannot_be_judged_stays_float32_and_is_told(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_measure(network: Any, query_: Any) -> Any:
        if query_.name == "b":
            raise RetrainError("query b: no measure")
        return task_of(network, query_)

    monkeypatch.setattr("gemel.calib.judge.task_of", no_measure)
    made = convert(write_workload(pair, asked("a"), asked("b")))
    assert made.record.refused == {"b": "query b: no measure"}
    assert made.told[-1] == "convert b: stays float32: query b: no measure"
    assert made.models["b"].precision == "fp32"
    assert proto(made.graph("b")) == proto(made.before["b"])
    assert set(made.record.kept.values()) == {"fp32 in b, int8 in a"}
    assert made.types("a")["depthwise.weight"] == "int8"
    # The result is the same when this calibration is given and no frames are read.
    again = convert(pair / "workload.yaml", PrecisionSettings("int8", "min-max", given=made.record))
    assert proto(again.graph("a")) == proto(made.graph("a"))
    assert again.record == made.record


def test_a_model_that_is_quantised_already_stays_as_it_is(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_is_quantized", lambda graph: graph.graph.name == "b")
    made = convert(write_workload(pair, asked("a"), asked("b")))
    assert made.record.refused == {"b": "it is quantised already"}
    assert proto(made.graph("b")) == proto(made.before["b"])
    monkeypatch.undo()
    assert not measure._is_quantized(made.before["a"])
    assert measure._is_quantized(made.graph("a"))


CAPS = {"a": 0.5, "b": 1.0}


def test_a_model_that_cannot_bear_float16_even_with_its_layers_in_float32_stays_float32(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = Judge.accuracies
    monkeypatch.setattr(
        Judge,
        "accuracies",
        lambda judge, graph: {name: min(found, CAPS[name]) for name, found in accuracies(judge, graph).items()},
    )
    made = convert(write_workload(pair, asked("a"), asked("b")), PrecisionSettings("fp16"))
    assert made.record.refused == {"a": "it cannot bear fp16, with all layers in float32"}
    assert set(made.types("a").values()) == {"float32"}
    assert set(made.record.models) == set(made.record.queries) == {"b"}
    # A kernel that b shares with a is float32 in both.
    assert made.types("b")["stem.weight"] == "float32"


def test_a_kernel_that_is_left_out_where_values_are_too_large_is_left_out_in_all_models(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "too_large", lambda graph, _: {"logits": 1e5} if graph.graph.name == "a" else {})
    made = convert(write_workload(pair, asked("a"), asked("b")), PrecisionSettings("fp16"))
    assert made.types("a")["head.weight"] == made.types("b")["head.weight"] == "float32"
    assert made.types("a")["stem.weight"] == made.types("b")["stem.weight"] == "float16"
    assert made.record.kept
    assert "ranges a: 1 values are too large for float16" in made.told

"""Models of a workload become narrower together: what they share stays one tensor, and what was found is used again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers import query, save
from narrowing import (
    CLASSES,
    asked,
    balanced,
    drawn,
    initializer,
    lower_once,
    passed,
    shapes,
    write_classes,
    write_workload,
)
from safetensors.torch import load_file, save_file
from tiny_models import TinyTransformer, tiny

from gemel.bundles.blob import tensor_id
from gemel.bundles.manifest import ClassificationDecode, InputSpec
from gemel.calib import narrow as narrowing_
from gemel.calib.judge import Judge
from gemel.calib.narrow import PrecisionSettings, narrow, precisions_of
from gemel.calib.record import Calibration, ModelRecord
from gemel.calib.weights import WeightUse
from gemel.compiler.lowering.lower import Lowered
from gemel.compiler.writing.sharing import kernels, prove
from gemel.errors import CalibrationError, RetrainError
from gemel.merging.tasks import task_of
from gemel.workload import Workload, load_workload
from gemel.workload.models.factory import models_of

SHARED = ("stem.weight", "pointwise.weight", "head.weight")
INT8 = PrecisionSettings("int8", "min-max")


@dataclass(frozen=True)
class Made:
    """What became of a workload."""

    found: Calibration | None
    times: Mapping[str, tuple[float, float]]
    models: dict[str, Lowered]
    before: dict[str, ir.Model]
    told: list[str]

    def graph(self, model: str) -> ir.Model:
        return self.models[model].stages["main"]

    def types(self, model: str) -> dict[str, str]:
        return {name: kind for name, (kind, _) in shapes(self.graph(model)).items() if name.endswith("weight")}

    @property
    def record(self) -> Calibration:
        assert self.found is not None
        return self.found


def narrowed(path: Path, settings: PrecisionSettings = INT8) -> Made:
    """As compile_workload does it."""
    workload = load_workload(path)
    used = dict.fromkeys(models_of(workload).values())
    lowered = [lower_once(each, workload.root) for each in workload.queries if each.name in used]
    start = kernels(lowered)
    models = passed(lowered)
    before = {model.name: model.stages["main"].clone() for model in models}
    told: list[str] = []
    found = narrow(models, workload, settings, lambda name, what: told.append(f"{name} {what}"))
    prove(models, start, {tensor for tensor, uses in start.items() if uses[0][2] == "depthwise.weight"})
    return Made(
        found.record if found else None,
        found.times if found else {},
        {model.name: model for model in models},
        before,
        told,
    )


def proto(graph: ir.Model) -> bytes:
    data: bytes = ir.to_proto(graph).SerializeToString(deterministic=True)
    return data


def test_all_models_are_narrow_and_share_what_they_shared(pair: Path) -> None:
    made = narrowed(write_workload(pair, asked("a"), asked("b")))
    assert {name: model.precision for name, model in made.models.items()} == {"a": "int8", "b": "int8"}
    for name in SHARED:
        first, second = (initializer(made.graph(model), name) for model in "ab")
        assert first.dtype == np.int8
        assert tensor_id(first) == tensor_id(second)
    assert made.told == [
        "ranges a: min-max of 30 frames",
        "ranges b: min-max of 30 frames",
        "narrow a: int8, 0 of 4 layers stay float32",
        "narrow b: int8, 0 of 4 layers stay float32",
    ]
    assert (made.record.method, made.record.kept, made.record.refused) == ("min-max", {}, {})
    for name in "ab":
        model, query_ = made.record.models[name], made.record.queries[name]
        assert (model.precision, model.frames) == ("int8", 30)
        assert {"image", "logits"} <= model.peaks.keys()
        # What pixels are once they are normalised: no more than (1 - 0.406) / 0.225.
        assert 2 < model.peaks["image"] < 2.65
        assert (query_.precision, query_.images, query_.labelled) == ("int8", 30, True)
        assert (query_.fp32, query_.accuracy) == (1, 1)
        assert query_.bytes < 0.4 * query_.fp32_bytes
        assert query_.fp32_bytes == sum(each.nbytes for each in map_values(made.before[name]))
        assert query_.bytes == sum(each.nbytes for each in map_values(made.graph(name)))
        assert min(made.times[name]) > 0
    assert made.record.models["a"].data != made.record.models["b"].data


def map_values(graph: ir.Model) -> list[np.ndarray[Any, Any]]:
    return [initializer(graph, name) for name in graph.graph.initializers]


def test_without_a_wish_nothing_happens(pair: Path) -> None:
    made = narrowed(write_workload(pair, asked("a"), asked("b")), PrecisionSettings())
    assert (made.found, made.told) == (None, [])
    assert all(proto(made.graph(name)) == proto(made.before[name]) for name in "ab")


@pytest.mark.parametrize("other", ["fp32", "fp16"])
def test_a_kernel_that_is_wanted_in_two_forms_stays_float32_in_both(pair: Path, other: str) -> None:
    made = narrowed(write_workload(pair, asked("a"), asked("b", precision=other)))
    assert {name: model.precision for name, model in made.models.items()} == {"a": "int8", "b": other}
    for name in SHARED:
        assert made.types("a")[name] == made.types("b")[name] == "float32"
        np.testing.assert_array_equal(initializer(made.graph("a"), name), initializer(made.before["a"], name))
    # What is its own is as it was asked for.
    assert made.types("a")["depthwise.weight"] == "int8"
    assert made.types("b")["depthwise.weight"] == {"fp32": "float32", "fp16": "float16"}[other]
    wanted = {tensor_id(np.ascontiguousarray(initializer(made.before["a"], name))) for name in SHARED}
    assert made.record.kept == dict.fromkeys(wanted, f"{other} in b, int8 in a")
    assert ("b" in made.record.models) == (other == "fp16")
    if other == "fp32":
        assert proto(made.graph("b")) == proto(made.before["b"])
    assert "narrow a: int8, 3 of 4 layers stay float32: head.weight, pointwise.weight, stem.weight" in made.told


def test_fp16_halves_all_and_needs_no_ranges(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowing_, "peaks_of", None)
    made = narrowed(write_workload(pair, asked("a"), asked("b")), PrecisionSettings("fp16"))
    assert {*made.types("a").values(), *made.types("b").values()} == {"float16"}
    for name in "ab":
        assert made.record.models[name].peaks == {}
        found = made.record.queries[name]
        assert (found.precision, found.accuracy) == ("fp16", 1)
        assert name not in made.times
        assert found.bytes < 0.51 * found.fp32_bytes


# What is asked for.


@pytest.mark.parametrize(
    ("default", "own", "other", "wanted"),
    [
        ("int8", None, None, "int8"),
        ("int8", None, "fp16", "fp16"),
        ("int8", "fp16", None, "fp16"),
        ("int8", "fp32", None, "fp32"),
        ("fp32", "int8", None, "fp32"),
        ("fp32", "int8", "int8", "int8"),
        ("fp32", "int8", "fp16", "fp16"),
        ("fp16", "int8", "fp32", "fp32"),
    ],
)
def test_of_two_queries_of_a_model_the_more_exacting_wins(
    workload_in: Callable[..., Workload], default: Any, own: str | None, other: str | None, wanted: str
) -> None:
    queries = [
        query("a", precision=own),
        {**query("a", precision=other), "name": "again"},
        query("b", precision="int8"),
    ]
    assert precisions_of(workload_in(*queries), default) == {"a": wanted, "b": "int8"}


def test_every_query_of_a_model_is_judged(pair: Path) -> None:
    again = {**asked("a"), "name": "again", "data": {part: f"data/a/{part}" for part in ("val", "train")}}
    made = narrowed(write_workload(pair, asked("a"), {**again, "data": None}))
    assert set(made.models) == {"a"}
    # Frames of both: labelled images, and those of the feed.
    assert made.record.models["a"].frames > 30
    assert {name: each.labelled for name, each in made.record.queries.items()} == {"a": True, "again": False}


@pytest.mark.parametrize(
    ("target", "merged", "floor"),
    [
        (0.5, {}, 0.99),
        (1.0, {}, 1.0),
        (0.95, {"a": 0.96}, 0.99),
        (0.95, {"a": 0.953}, 0.95 / 0.953),
        (0.95, {"a": 0.9}, 1),
    ],
)
def test_a_query_keeps_its_target_of_the_unmerged_model_and_99_percent_in_any_case(
    pair: Path, target: float, merged: dict[str, float], floor: float
) -> None:
    made = narrowed(
        write_workload(pair, asked("a", target=target)), PrecisionSettings("int8", "min-max", merged=merged)
    )
    assert made.record.queries["a"].floor == pytest.approx(floor)


# What cannot be narrow.


def test_a_layer_that_cannot_bear_it_stays_float32_in_all_models(pair: Path) -> None:
    """Classes that differ by a thousandth: in int8 they are one."""
    state = load_file(pair / "a.safetensors")
    state["head.weight"] = state["head.weight"] * 1e-3 + torch.linspace(1, 2, 32)
    state["head.bias"] = state["head.bias"] * 1e-3
    save_file(state, pair / "a.safetensors")
    state_b = load_file(pair / "b.safetensors")
    state_b["head.weight"] = state["head.weight"]
    save_file(state_b, pair / "b.safetensors")
    made = narrowed(write_workload(pair, asked("a"), asked("b", data={"train": "frames", "val": "frames"})))
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
    made = narrowed(write_workload(pair, asked("a"), asked("b")))
    assert made.record.refused == {"b": "query b: no measure"}
    assert made.told[-1] == "narrow b: stays float32: query b: no measure"
    assert made.models["b"].precision == "fp32"
    assert proto(made.graph("b")) == proto(made.before["b"])
    assert set(made.record.kept.values()) == {"fp32 in b, int8 in a"}
    assert made.types("a")["depthwise.weight"] == "int8"
    # Without frames, too.
    again = narrowed(pair / "workload.yaml", PrecisionSettings("int8", "min-max", known=made.record, blind=True))
    assert proto(again.graph("a")) == proto(made.graph("a"))
    assert again.record == made.record


@pytest.mark.parametrize("other", ["fp32", "int8"])
def test_a_weight_that_is_no_layers_kernel_stays_one_tensor_beside_fp16(pair: Path, other: str) -> None:
    """Weights that are turned before they are multiplied with, as in a transformer."""
    torch.manual_seed(0)
    model = TinyTransformer()
    for name in ("t", "u"):
        save(model, pair / f"{name}.safetensors")
    queries = [query(name, "tiny_models:TinyTransformer") for name in "tu"]
    queries[1]["precision"] = other
    made = narrowed(write_workload(pair, *queries), PrecisionSettings("fp16", "min-max"))
    assert made.types("t")["mix.0.weight"] == made.types("u")["mix.0.weight"]


def test_a_kernel_that_models_read_along_other_axes_stays_float32() -> None:
    """There are as many roundings of it as axes."""
    kernel = np.random.default_rng(0).normal(0, 1, (6, 6)).astype(np.float32)
    nodes = {"a": "out = MatMul(image, k)", "b": "out = Gemm<transB=1>(image, k)", "c": "out = Gemm(image, k)"}
    models = {
        name: Lowered(
            name, {"main": drawn(each, (6,), k=kernel)}, ClassificationDecode(classes=6), InputSpec(size=(1, 6))
        )
        for name, each in nodes.items()
    }
    record = ModelRecord(precision="int8", model="", data="", frames=1, peaks={})

    def contested(*names: str, precision: Any = "int8") -> list[str]:
        records = dict.fromkeys(names, record.model_copy(update={"precision": precision}))
        return list(WeightUse([models[name] for name in names]).contested(records).values())

    assert contested("a", "b") == ["int8 in a, int8 in b"]
    assert contested("a", "c") == contested("a", "b", precision="fp16") == []


# What is used again.


@pytest.fixture
def known(pair: Path) -> Made:
    return narrowed(write_workload(pair, asked("a"), asked("b")))


def again(pair: Path, known: Made, blind: bool = False, method: Any = "min-max") -> Made:
    return narrowed(pair / "workload.yaml", PrecisionSettings("int8", method, known=known.record, blind=blind))


def same(first: Made, second: Made) -> bool:
    return first.record == second.record and all(proto(first.graph(name)) == proto(second.graph(name)) for name in "ab")


def test_ranges_of_the_same_models_and_frames_are_used_again(
    pair: Path, known: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrowing_, "peaks_of", None)
    monkeypatch.setattr(narrowing_, "settle", None)
    made = again(pair, known)
    assert same(made, known)
    assert made.told[:2] == ["ranges a: those of calibration.json", "ranges b: those of calibration.json"]


def test_another_method_frames_weights_or_target_are_measured_anew(pair: Path, known: Made) -> None:
    made = again(pair, known, method="percentile")
    assert made.told[:2] == ["ranges a: percentile of 30 frames", "ranges b: percentile of 30 frames"]
    assert made.record.models["a"].peaks != known.record.models["a"].peaks

    next((pair / "data" / "a" / "train").rglob("*.png")).unlink()
    made = again(pair, known)
    assert made.told[:2] == ["ranges a: min-max of 29 frames", "ranges b: those of calibration.json"]
    assert made.record.models["a"].data != known.record.models["a"].data

    save(balanced(tiny(5)), pair / "b.safetensors")
    made = again(pair, made)
    assert made.told[:2] == ["ranges a: min-max of 29 frames", "ranges b: min-max of 30 frames"]


def test_a_calibration_is_used_without_frames(pair: Path, known: Made) -> None:
    shutil.rmtree(pair / "data")
    shutil.rmtree(pair / "frames")
    made = again(pair, known, blind=True)
    assert same(made, known)
    assert made.told == [line for line in known.told if line.startswith("narrow ")]


def test_a_calibration_of_other_models_is_refused_without_frames(pair: Path, known: Made) -> None:
    write_workload(pair, asked("a"), asked("b", precision="fp16"))
    with pytest.raises(CalibrationError, match="the calibration has no model b in fp16"):
        again(pair, known, blind=True)
    write_workload(pair, asked("b"), {**asked("a"), "name": "c"})
    shutil.copy(pair / "a.safetensors", pair / "c.safetensors")
    with pytest.raises(CalibrationError, match="the calibration has no model c in int8"):
        again(pair, known, blind=True)
    write_workload(pair, asked("a"), asked("b"))
    state = load_file(pair / "b.safetensors")
    state["head.bias"][0] += 1e-3
    save_file(state, pair / "b.safetensors")
    with pytest.raises(CalibrationError, match="made for another model b: its weights or layers differ"):
        again(pair, known, blind=True)


def test_what_a_calibration_says_of_models_that_are_not_there_is_left_out(pair: Path, known: Made) -> None:
    """One bundle's models may be compiled into two."""
    save(balanced(tiny(7)), pair / "c.safetensors")
    for part in ("train", "val"):
        write_classes(pair / "data" / "c" / part, balanced(tiny(7)), 9, CLASSES)
    both = narrowed(write_workload(pair, asked("a"), asked("b"), asked("c")))
    write_workload(pair, asked("a"), asked("b"))
    made = again(pair, both, blind=True)
    assert set(made.record.models) == set(made.record.queries) == {"a", "b"}
    assert (made.record.models, made.record.kept) == (known.record.models, {})
    assert all(proto(made.graph(name)) == proto(known.graph(name)) for name in "ab")


@pytest.mark.parametrize("blind", [False, True])
def test_a_model_that_comes_later_and_stays_float32_keeps_what_it_shares(pair: Path, blind: bool) -> None:
    """What was found for the other model does not know of it."""
    state = load_file(pair / "a.safetensors")
    # The kernels lie under equal BatchNorms, so that the first model is the same without and with the second.
    for name in ("head.weight", "head.bias"):
        state[name] = state[name].flip(0).contiguous()
    save_file(state, pair / "b.safetensors")
    known = narrowed(write_workload(pair, asked("a")))
    assert known.record.kept == {}
    write_workload(pair, asked("a"), asked("b", precision="fp32"))
    made = again(pair, known, blind)
    assert made.types("a")["stem.weight"] == made.types("b")["stem.weight"] == "float32"
    assert "fp32 in b, int8 in a" in made.record.kept.values()
    # And it may go again.
    write_workload(pair, asked("a"))
    assert again(pair, made).record.kept == {}


def changed(known: Made, **changes: Any) -> PrecisionSettings:
    return PrecisionSettings("int8", "min-max", known=known.record.model_copy(update=changes), blind=True)


def test_a_calibration_that_does_not_keep_todays_targets_is_refused(pair: Path, known: Made) -> None:
    worse = known.record.queries["a"].model_copy(update={"accuracy": 0.97})
    with pytest.raises(CalibrationError, match=r"query a: the calibration keeps 97\.00%, 99\.00% are wanted"):
        narrowed(pair / "workload.yaml", changed(known, queries={**known.record.queries, "a": worse}))
    with pytest.raises(CalibrationError, match="the calibration has no query a"):
        narrowed(pair / "workload.yaml", changed(known, queries={"b": known.record.queries["b"]}))


def test_a_calibration_says_nothing_of_queries_that_are_float32_now(pair: Path, known: Made) -> None:
    write_workload(pair, asked("a"), asked("b", precision="fp32"))
    assert set(again(pair, known, blind=True).record.queries) == {"a"}


def test_ranges_that_are_not_all_there_are_none(pair: Path, known: Made) -> None:
    cut = known.record.models["a"].model_copy(update={"peaks": {"image": 1.0}})
    models = {**known.record.models, "a": cut}
    with pytest.raises(CalibrationError, match="made for another model a"):
        narrowed(pair / "workload.yaml", changed(known, models=models))
    made = again(pair, replace(known, found=known.record.model_copy(update={"models": models})))
    assert made.record == known.record


def test_a_model_that_is_quantised_already_stays_as_it_is(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowing_, "_is_quantised", lambda graph: graph.graph.name == "b")
    made = narrowed(write_workload(pair, asked("a"), asked("b")))
    assert made.record.refused == {"b": "it is quantised already"}
    assert proto(made.graph("b")) == proto(made.before["b"])
    monkeypatch.undo()
    assert not narrowing_._is_quantised(made.before["a"])
    assert narrowing_._is_quantised(made.graph("a"))


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
    made = narrowed(write_workload(pair, asked("a"), asked("b")), PrecisionSettings("fp16"))
    assert made.record.refused == {"a": "it cannot bear fp16, with all layers in float32"}
    assert set(made.types("a").values()) == {"float32"}
    assert set(made.record.models) == set(made.record.queries) == {"b"}
    # What it shares with the other one has one form.
    assert made.types("b")["stem.weight"] == "float32"


def test_a_kernel_that_is_left_out_where_values_are_too_large_is_left_out_in_all_models(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrowing_, "too_large", lambda graph, _: {"logits": 1e5} if graph.graph.name == "a" else {})
    made = narrowed(write_workload(pair, asked("a"), asked("b")), PrecisionSettings("fp16"))
    assert made.types("a")["head.weight"] == made.types("b")["head.weight"] == "float32"
    assert made.types("a")["stem.weight"] == made.types("b")["stem.weight"] == "float16"
    assert made.record.kept

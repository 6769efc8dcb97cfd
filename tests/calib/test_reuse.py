"""Ranges and layers of an earlier calibration are used again where they still hold, and refused where they do not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from converted import Conversion, convert, proto
from helpers import save
from precision_cases import CLASSES, asked, balanced, write_classes, write_workload
from safetensors.torch import load_file, save_file
from tiny_models import tiny

from gemel.calib import measure, verify
from gemel.calib.record import Calibration, ModelRecord, QueryRecord
from gemel.calib.request import PrecisionSettings
from gemel.calib.reuse import FOR_ACCURACY, is_unchanged
from gemel.errors import CalibrationError

MODEL = ModelRecord(precision="fp16", model="00", data="11", frames=9, peaks={})
QUERY = QueryRecord(precision="fp16", images=9, labelled=True, fp32=1, accuracy=1, floor=0.99, fp32_bytes=8, bytes=4)
KEPT = {"00" * 16: "fp32 in b, fp16 in a", "11" * 16: f"stem.weight of a{FOR_ACCURACY}"}
EARLIER = Calibration(method="min-max", models={"a": MODEL}, kept=KEPT, queries={"a": QUERY}, refused={"c": "why"})
SAME: dict[str, Any] = {
    "records": {"a": MODEL},
    "refused": {"c": "why"},
    "floors": {"a": 0.99},
    "contested": {"00" * 16: "fp32 in b, fp16 in a"},
}


def test_a_search_with_the_same_input_is_not_done_again() -> None:
    assert is_unchanged(EARLIER, **SAME)


@pytest.mark.parametrize(
    "change",
    [
        {"records": {"a": MODEL.model_copy(update={"data": "22"})}},
        {"records": {"a": MODEL, "b": MODEL}},
        {"refused": {}},
        {"floors": {"a": 0.98}},
        {"contested": {}},
        {"contested": KEPT},
    ],
)
def test_a_search_with_another_input_is_done_again(change: dict[str, Any]) -> None:
    assert not is_unchanged(EARLIER, **{**SAME, **change})


@pytest.fixture
def known(pair: Path) -> Calibration:
    return known_conversion(pair).record


def known_conversion(pair: Path) -> Conversion:
    return convert(write_workload(pair, asked("a"), asked("b")))


def with_earlier(pair: Path, earlier: Calibration, method: Any = "min-max") -> Conversion:
    """Convert the workload, as if an earlier bundle had this calibration."""
    return convert(pair / "workload.yaml", PrecisionSettings("int8", method, earlier=earlier))


def with_given(pair: Path, given: Calibration) -> Conversion:
    """Convert the workload by a calibration, without frames."""
    return convert(pair / "workload.yaml", PrecisionSettings("int8", "min-max", given=given))


def same(first: Conversion, second: Conversion) -> bool:
    return first.record == second.record and all(proto(first.graph(name)) == proto(second.graph(name)) for name in "ab")


def test_ranges_of_the_same_models_and_frames_are_used_again(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_conversion(pair)
    monkeypatch.setattr(measure, "peaks_of", None)
    monkeypatch.setattr(verify, "settle", None)
    made = with_earlier(pair, known.record)
    assert same(made, known)
    assert made.told[:2] == ["ranges a: those of calibration.json", "ranges b: those of calibration.json"]


def test_another_method_frames_weights_or_target_are_measured_anew(pair: Path, known: Calibration) -> None:
    made = with_earlier(pair, known, "percentile")
    assert made.told[:2] == ["ranges a: percentile of 30 frames", "ranges b: percentile of 30 frames"]
    assert made.record.models["a"].peaks != known.models["a"].peaks

    next((pair / "data" / "a" / "train").rglob("*.png")).unlink()
    made = with_earlier(pair, known)
    assert made.told[:2] == ["ranges a: min-max of 29 frames", "ranges b: those of calibration.json"]
    assert made.record.models["a"].data != known.models["a"].data

    save(balanced(tiny(5)), pair / "b.safetensors")
    made = with_earlier(pair, made.record)
    assert made.told[:2] == ["ranges a: min-max of 29 frames", "ranges b: min-max of 30 frames"]


def test_a_calibration_is_used_without_frames(pair: Path) -> None:
    known = known_conversion(pair)
    shutil.rmtree(pair / "data")
    shutil.rmtree(pair / "frames")
    made = with_given(pair, known.record)
    assert same(made, known)
    assert made.told == [line for line in known.told if line.startswith("convert ")]


def test_a_calibration_of_other_models_is_refused_without_frames(pair: Path, known: Calibration) -> None:
    write_workload(pair, asked("a"), asked("b", precision="fp16"))
    with pytest.raises(CalibrationError, match="the calibration has no model b in fp16"):
        with_given(pair, known)
    write_workload(pair, asked("b"), {**asked("a"), "name": "c"})
    shutil.copy(pair / "a.safetensors", pair / "c.safetensors")
    with pytest.raises(CalibrationError, match="the calibration has no model c in int8"):
        with_given(pair, known)
    write_workload(pair, asked("a"), asked("b"))
    state = load_file(pair / "b.safetensors")
    state["head.bias"][0] += 1e-3
    save_file(state, pair / "b.safetensors")
    with pytest.raises(CalibrationError, match="made for another model b: its weights or layers differ"):
        with_given(pair, known)


def test_what_a_calibration_says_of_models_that_are_not_there_is_left_out(pair: Path) -> None:
    """A workload with some of the models may be compiled into another bundle."""
    known = known_conversion(pair)
    save(balanced(tiny(7)), pair / "c.safetensors")
    for part in ("train", "val"):
        write_classes(pair / "data" / "c" / part, balanced(tiny(7)), 9, CLASSES)
    all_three = convert(write_workload(pair, asked("a"), asked("b"), asked("c"))).record
    write_workload(pair, asked("a"), asked("b"))
    made = with_given(pair, all_three)
    assert set(made.record.models) == set(made.record.queries) == {"a", "b"}
    assert (made.record.models, made.record.kept) == (known.record.models, {})
    assert all(proto(made.graph(name)) == proto(known.graph(name)) for name in "ab")


@pytest.mark.parametrize("convert_again", [with_earlier, with_given])
def test_a_model_that_comes_later_and_stays_float32_keeps_what_it_shares(pair: Path, convert_again: Any) -> None:
    """The earlier calibration does not know the later model."""
    state = load_file(pair / "a.safetensors")
    # Both models have equal BatchNorms behind the kernels, so that a's graph is the same with and without b.
    for name in ("head.weight", "head.bias"):
        state[name] = state[name].flip(0).contiguous()
    save_file(state, pair / "b.safetensors")
    known = convert(write_workload(pair, asked("a"))).record
    assert known.kept == {}
    write_workload(pair, asked("a"), asked("b", precision="fp32"))
    made = convert_again(pair, known)
    assert made.types("a")["stem.weight"] == made.types("b")["stem.weight"] == "float32"
    assert "fp32 in b, int8 in a" in made.record.kept.values()
    # Without the later model, its kernels are int8 again.
    write_workload(pair, asked("a"))
    assert with_earlier(pair, made.record).record.kept == {}


def test_a_calibration_that_does_not_keep_todays_targets_is_refused(pair: Path, known: Calibration) -> None:
    worse = known.queries["a"].model_copy(update={"accuracy": 0.97})
    with pytest.raises(CalibrationError, match=r"query a: the calibration keeps accuracy 97\.00%; 99\.00% is required"):
        with_given(pair, known.model_copy(update={"queries": {**known.queries, "a": worse}}))
    with pytest.raises(CalibrationError, match="the calibration has no query a"):
        with_given(pair, known.model_copy(update={"queries": {"b": known.queries["b"]}}))


def test_a_calibration_says_nothing_of_queries_that_are_float32_now(pair: Path, known: Calibration) -> None:
    write_workload(pair, asked("a"), asked("b", precision="fp32"))
    assert set(with_given(pair, known).record.queries) == {"a"}


def test_ranges_that_are_not_all_there_are_none(pair: Path, known: Calibration) -> None:
    cut = known.models["a"].model_copy(update={"peaks": {"image": 1.0}})
    broken = known.model_copy(update={"models": {**known.models, "a": cut}})
    with pytest.raises(CalibrationError, match="made for another model a"):
        with_given(pair, broken)
    assert with_earlier(pair, broken).record == known

"""``gemel compile --precision`` as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers import query, save, write_video
from precision_cases import asked, frames, lower_once, write_frames, write_pair, write_workload
from safetensors.torch import load_file, save_file
from tiny_models import tiny

from gemel.bundles.manifest import Manifest
from gemel.bundles.reader import open_bundle, verify
from gemel.calib.record import read_calibration
from gemel.check.source.accuracy import QueryAccuracy, verify_accuracy
from gemel.errors import install_hint
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.engines.store import engines_in
from gemel.workload import load_workload

Call = Callable[..., tuple[int, str, str]]
SHARED = {(16, 3, 3, 3), (32, 16, 1, 1), (3, 32)}
"""Shapes of the kernels that both models hold."""


@pytest.fixture(autouse=True)
def _cheap(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on one thread, and export each model only once in all these tests."""
    monkeypatch.setattr("gemel.compiler.compile.lower", lower_once)


@pytest.fixture(scope="session")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("precision"))


@pytest.fixture
def folder(_pair: Path, tmp_path: Path) -> Path:
    """Return a folder with ``workload.yaml``, weights and images."""
    return Path(shutil.copytree(_pair, tmp_path / "w"))


@pytest.fixture
def compile_(gemel: Call, folder: Path) -> Call:
    return partial(gemel, "compile", folder / "workload.yaml", "-o", folder / "bundle")


def contents(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir()}


def manifest(folder: Path) -> Manifest:
    return open_bundle(folder / "bundle").manifest


def forms(folder: Path, model: str) -> dict[tuple[int, ...], str]:
    """Return shape -> dtype of each kernel of a model."""
    content = manifest(folder)
    tensors = [content.tensors[name] for name in content.models[model].stages["main"].weights]
    return {tensor.shape: tensor.dtype for tensor in tensors if len(tensor.shape) > 1}


def test_an_int8_bundle_shares_what_a_float32_one_shares(folder: Path, compile_: Call) -> None:
    assert compile_()[0] == 0
    before = manifest(folder)
    code, out, err = compile_("--precision", "int8")
    assert (code, err) == (0, "")
    after = manifest(folder)
    verify(open_bundle(folder / "bundle"))
    assert {model.precision for model in before.models.values()} == {"fp32"}
    assert {model.precision for model in after.models.values()} == {"int8"}
    assert "calibration.json" in after.files
    assert "calibration.json" not in before.files
    for model in "ab":
        # All kernels are int8; what is float32 are biases and scales, which have one dimension.
        assert set(forms(folder, model).values()) == {"int8"}
        onnx.checker.check_model(folder / "bundle" / f"{model}.onnx", full_check=True)
    first, second = (set(after.models[name].stages["main"].weights) for name in "ab")
    assert {after.tensors[tensor].shape for tensor in first & second} >= SHARED
    kernels = [tensor for tensor in after.tensors.values() if len(tensor.shape) > 1]
    # Different BatchNorms that are folded into one kernel change its float32 values, but hardly its integers.
    once, depthwise = 16 * 27 + 32 * 16 + 3 * 32, 16 * 9
    assert once + depthwise <= sum(tensor.length for tensor in kernels) <= once + 2 * depthwise

    lines = out.splitlines()
    stages = [line.split(maxsplit=3) for line in lines]
    assert [line[3] for line in stages if line[:1] == ["ranges"]] == [
        f"{name}: percentile of 30 frames" for name in "ab"
    ]
    converted = [line[3] for line in stages if line[:1] == ["convert"]]
    assert converted == [f"{name}: int8, 0 of 4 layers stay float32" for name in "ab"]
    assert re.search(
        r"^ *a +int8 +100\.00% +100\.00% +99\.00% +15 +0\.01 +0\.00 +\d+\.\d\d +\d+\.\d\d *$", out, re.M
    ), out
    assert lines[-1] == f"Next: gemel-run {folder / 'bundle'}"


def test_onnx_files_give_what_float32_ones_give(folder: Path, compile_: Call) -> None:
    images = frames(4)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found = {}
    for precision in ("fp32", "fp16", "int8"):
        assert compile_("--precision", precision)[0] == 0
        session = ort.InferenceSession(folder / "bundle" / "a.onnx", options)
        found[precision] = np.concatenate([session.run(["logits"], {"image": image})[0] for image in images])
    fp16, int8 = (np.abs(found[precision] - found["fp32"]).max() for precision in ("fp16", "int8"))
    assert 0 < 2 * fp16 < int8 < np.ptp(found["fp32"]) / 3


def test_an_fp16_bundle(folder: Path, compile_: Call) -> None:
    code, out, _ = compile_("--precision", "fp16")
    assert code == 0
    for model in "ab":
        assert manifest(folder).models[model].precision == "fp16"
        assert set(forms(folder, model).values()) == {"float16"}
        onnx.checker.check_model(folder / "bundle" / f"{model}.onnx", full_check=True)
        ports = manifest(folder).models[model].stages["main"]
        assert {port.dtype for port in (*ports.inputs, *ports.outputs)} == {"float32"}
    first, second = (set(manifest(folder).models[name].stages["main"].weights) for name in "ab")
    assert {manifest(folder).tensors[tensor].shape for tensor in first & second} >= SHARED
    assert "ranges" not in out
    assert read_calibration(folder / "bundle" / "calibration.json").queries["a"].precision == "fp16"


def test_a_query_may_stay_float32_and_what_it_shares_stays_one_tensor(folder: Path, compile_: Call) -> None:
    write_workload(folder, asked("a"), asked("b", precision="fp32"))
    code, out, _ = compile_("--precision", "int8")
    assert code == 0
    assert {name: model.precision for name, model in manifest(folder).models.items()} == {"a": "int8", "b": "fp32"}
    assert forms(folder, "a") == {**dict.fromkeys(SHARED, "float32"), (16, 1, 3, 3): "int8"} | {
        shape: kind for shape, kind in forms(folder, "a").items() if shape[1:] == (1, 1, 1)
    }
    first, second = (set(manifest(folder).models[name].stages["main"].weights) for name in "ab")
    assert {manifest(folder).tensors[tensor].shape for tensor in first & second} >= SHARED
    found = read_calibration(folder / "bundle" / "calibration.json")
    kept = {manifest(folder).tensors[tensor].shape: reason for tensor, reason in found.kept.items()}
    assert kept == dict.fromkeys(SHARED, "fp32 in b, int8 in a")
    assert set(found.models) == set(found.queries) == {"a"}
    assert "a: int8, 3 of 4 layers stay float32" in out


def test_a_query_may_be_int8_alone(folder: Path, compile_: Call) -> None:
    write_workload(folder, asked("a", precision="int8"), {**query("b"), "model": {**query("b")["model"]}})
    # There are no images for the other query, and none are needed.
    assert compile_()[0] == 0
    assert {name: model.precision for name, model in manifest(folder).models.items()} == {"a": "int8", "b": "fp32"}


@pytest.mark.parametrize("other", ["fp16", "fp32"])
def test_of_two_queries_of_one_model_the_more_exacting_wins(folder: Path, compile_: Call, other: str) -> None:
    write_workload(folder, asked("a"), {**asked("a", precision=other), "name": "again"})
    assert compile_("--precision", "int8")[0] == 0
    assert manifest(folder).models["a"].precision == other
    calibration = folder / "bundle" / "calibration.json"
    if other == "fp32":
        assert not calibration.exists()
    else:
        assert {query_.precision for query_ in read_calibration(calibration).queries.values()} == {"fp16"}


def test_frames_of_a_video_without_labels(folder: Path, compile_: Call) -> None:
    write_video(folder / "yard.mp4", frames=40)
    write_workload(folder, query("a"), feeds={"yard": {"source": "yard.mp4"}})
    code, out, _ = compile_("--precision", "int8")
    assert code == 0
    found = read_calibration(folder / "bundle" / "calibration.json")
    assert found.queries["a"].labelled is False
    assert found.queries["a"].fp32 == 1
    # Of 40 frames, 24 calibrate and 7 choose; one between two parts is left out, and the others confirm.
    assert (found.models["a"].frames, found.queries["a"].images) == (24, 7)
    assert f"{found.queries['a'].images}, agreement" in out


# Compiling again.


def test_compiling_again_uses_the_ranges_and_gives_the_same_bytes(
    folder: Path, compile_: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compile_("--precision", "int8")[0] == 0
    before = contents(folder / "bundle")
    monkeypatch.setattr("gemel.calib.measure.peaks_of", None)
    code, out, _ = compile_("--precision", "int8")
    assert code == 0
    assert all(f"{name}: those of calibration.json" in out for name in "ab")
    assert contents(folder / "bundle") == before


def test_compiling_elsewhere_gives_the_same_models(folder: Path, gemel: Call) -> None:
    for name in ("one", "two"):
        assert gemel("compile", folder / "workload.yaml", "-o", folder / name, "--precision", "int8")[0] == 0
    for name in ("a.onnx", "b.onnx", "weights.bin"):
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()


@pytest.mark.parametrize("changed", ["weights", "images"])
def test_what_changed_is_calibrated_anew(folder: Path, compile_: Call, changed: str) -> None:
    assert compile_("--precision", "int8")[0] == 0
    before = read_calibration(folder / "bundle" / "calibration.json")
    if changed == "weights":
        state = tiny(0)
        state.head.bias.data += 0.01
        save(state, folder / "a.safetensors")
    else:
        write_frames(folder / "more", 12, seed=9)
        target = next((folder / "data" / "a" / "train").iterdir())
        for path in (folder / "more").iterdir():
            path.rename(target / f"more-{path.name}")
    code, out, _ = compile_("--precision", "int8")
    assert code == 0
    assert re.search(rf"a: percentile of {30 if changed == 'weights' else 42} frames", out)
    assert "b: those of calibration.json" in out
    after = read_calibration(folder / "bundle" / "calibration.json")
    assert after.models["a"] != before.models["a"]
    assert after.models["b"] == before.models["b"]


def test_a_bundle_with_a_broken_calibration_is_made_anew(folder: Path, compile_: Call) -> None:
    assert compile_("--precision", "int8")[0] == 0
    path = folder / "bundle" / "calibration.json"
    path.write_bytes(b"x" * path.stat().st_size)
    code, out, _ = compile_("--precision", "int8")
    assert code == 0
    assert "a: percentile of 30 frames" in out


def test_a_calibration_file_takes_the_place_of_frames(folder: Path, compile_: Call) -> None:
    assert compile_("--precision", "int8")[0] == 0
    before = contents(folder / "bundle")
    (folder / "bundle" / "calibration.json").rename(folder / "kept.json")
    for name in ("bundle", "data", "frames"):
        shutil.rmtree(folder / name)
    code, out, _ = compile_("--precision", "int8", "--calibration", folder / "kept.json")
    assert code == 0
    assert contents(folder / "bundle") == before
    assert "ranges" not in out
    assert re.search(r"^ *b +int8 +100\.00%", out, re.M)


# A refusal is one line and exit code 2, and nothing is written.


def refused(folder: Path, answer: tuple[int, str, str]) -> str:
    code, out, err = answer
    assert code == 2
    assert not (folder / "bundle").exists()
    assert not list(folder.glob(".bundle*"))
    (line,) = err.splitlines()
    assert "Next:" not in out
    return line


def test_a_calibration_of_another_model(folder: Path, compile_: Call) -> None:
    assert compile_("--precision", "int8")[0] == 0
    (folder / "bundle" / "calibration.json").rename(folder / "kept.json")
    shutil.rmtree(folder / "bundle")
    state = load_file(folder / "b.safetensors")
    state["head.bias"] += 1
    save_file(state, folder / "b.safetensors")
    line = refused(folder, compile_("--precision", "int8", "--calibration", folder / "kept.json"))
    assert line.endswith("the calibration was made for another model b: its weights or layers differ")
    write_workload(folder, {**asked("a"), "name": "c", "model": asked("a")["model"]})
    line = refused(folder, compile_("--precision", "int8", "--calibration", folder / "kept.json"))
    assert line.endswith("the calibration has no model c in int8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "int4"), "--precision: 'int4' is not allowed: fp32, fp16, int8 are"),
        (("--precision", "INT8"), "--precision: 'INT8' is not allowed: fp32, fp16, int8 are"),
        (
            ("--precision", "int8", "--ranges", "max"),
            "--ranges: 'max' is not allowed: min-max, entropy, percentile are",
        ),
        (("--calibration", "x.json"), "--calibration: no query asks for int8 or fp16: give --precision int8 with it"),
        (("--precision", "int8", "--calibration", "x.json"), "x.json: cannot be read: No such file or directory"),
        (("--precision", "int8", "--calibration", "a.safetensors"), "a.safetensors: is no calibration"),
    ],
)
def test_what_is_not_allowed(
    folder: Path, compile_: Call, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(folder)
    assert message in refused(folder, compile_(*arguments))


def test_a_precision_that_a_query_cannot_have(folder: Path, compile_: Call) -> None:
    write_workload(folder, asked("a", precision="int4"))
    assert "precision" in refused(folder, compile_())


def test_a_camera_without_data(folder: Path, compile_: Call) -> None:
    write_workload(folder, query("a"), feeds={"yard": {"source": "rtsp://user:secret@camera/1"}})
    line = refused(folder, compile_("--precision", "int8"))
    assert "query a: feed yard: frames of a camera are not kept; give data.train" in line
    assert "secret" not in line


def test_a_dead_layer(folder: Path, compile_: Call) -> None:
    state = tiny(0)
    for value in (state.norm1.weight, state.norm1.bias):
        value.data.zero_()
    save(state, folder / "a.safetensors")
    write_workload(folder, query("a"))
    line = refused(folder, compile_("--precision", "int8"))
    assert re.search(r"model a: \w+ is 0 all over the \d+ frames that it is calibrated on", line)


def test_without_the_packages(folder: Path, monkeypatch: pytest.MonkeyPatch, compile_: Call) -> None:
    for name in [name for name in sys.modules if name.startswith("torchmetrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "gemel.merging.tasks.classification", raising=False)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    line = refused(folder, compile_("--precision", "int8"))
    assert f"--precision needs packages that are not installed: {install_hint('merge')}" in line
    # Compiling in float32 needs none of these packages.
    assert compile_()[0] == 0


# gemel check and gemel inspect.


def test_check_judges_by_accuracy(folder: Path, compile_: Call, gemel: Call) -> None:
    assert compile_("--precision", "int8")[0] == 0
    flags = ("--against", folder / "workload.yaml", "--accuracy", "--json", folder / "check.json")
    code, out, err = gemel("check", folder / "bundle", *flags)
    assert (code, err) == (0, "")
    assert out.count("not judged: int8 is judged by --accuracy") == 2
    assert out.count(", at least 99.00%") == 2
    report = json.loads((folder / "check.json").read_text())
    assert [each["passed"] for each in report["models"].values()] == [None, None]
    assert [each["part"] for each in report["accuracy"].values()] == [0.99, 0.99]


def test_check_finds_what_is_less_accurate(folder: Path, compile_: Call) -> None:
    assert compile_("--precision", "int8")[0] == 0
    bundle, workload = open_bundle(folder / "bundle"), load_workload(folder / "workload.yaml")
    # No query can keep more than 100 %.
    judged = {each.query: each for each in verify_accuracy(bundle, workload, {"a": 1.1, "b": 0.9})}
    assert {name: isinstance(each, QueryAccuracy) and each.passed for name, each in judged.items()} == {
        "a": False,
        "b": True,
    }


def test_inspect_says_how_it_runs_here(folder: Path, compile_: Call, gemel: Call) -> None:
    assert compile_("--precision", "int8")[0] == 0
    assert json_of(gemel, folder)["packings"] == {}
    with OrtCpu(open_bundle(folder / "bundle"), threads=1) as backend:
        copies = {name: copy.bytes for name, copy in backend.baked.packings.items()}
    found = json_of(gemel, folder)
    assert {name: each["precision"] for name, each in found["models"].items()} == {"a": "int8", "b": "int8"}
    assert {name: each["bytes"] for name, each in found["packings"].items()} == copies
    assert all(each["bound_ms"] > 0 and each["packed_ms"] > 0 for each in found["packings"].values())


def json_of(gemel: Call, folder: Path) -> dict[str, Any]:
    code, out, _ = gemel("inspect", folder / "bundle", "--json", folder / "inspect.json")
    found: dict[str, Any] = json.loads((folder / "inspect.json").read_text())
    assert (code, "int8 on this CPU" in out) == (0, bool(found["packings"]))
    return found


# Engines.


@pytest.mark.parametrize(("precision", "dtype"), [("int8", "int8"), ("fp16", "float16")])
def test_engines_take_weights_in_lower_precision_as_inputs(
    folder: Path, compile_: Call, precision: str, dtype: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed; there is none for this CPU")
    assert compile_("--precision", precision, "--backend", "tensorrt-rtx", "--target", "sm86,sm120")[0] == 0
    bundle = open_bundle(folder / "bundle")
    (engines,) = engines_in(bundle)
    for model in bundle.manifest.models.values():
        stage = model.stages["main"]
        engine = engines.engines[stage.program]
        assert engine.inputs == len(stage.weights)
        assert dtype in {bundle.manifest.tensors[tensor].dtype for tensor in stage.weights}
        data = engines.path(stage.program).read_bytes()
        large = [tensor for tensor in stage.weights if bundle.tensor(tensor).size > 100]
        assert large
        assert not any(bundle.tensor(tensor).tobytes() in data for tensor in large)


# gemel run.


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_bundle_runs_on_the_cpu(folder: Path, compile_: Call, gemel: Call, precision: str) -> None:
    assert compile_()[0] == 0
    wanted = answers(folder, gemel)
    assert compile_("--precision", precision)[0] == 0
    found = answers(folder, gemel)
    assert len(found) == len(wanted) == 2 * 40
    same = sum(found[key] == wanted[key] for key in wanted)
    # The models are not sure of these frames.
    assert same >= 0.7 * len(wanted)


def answers(folder: Path, gemel: Call) -> dict[tuple[str, int], str]:
    """Run the bundle, and return (query, frame) -> class."""
    results = folder / "results.jsonl"
    code, _, err = gemel("run", folder / "bundle", "--offline", "--results", results)
    assert (code, err) == (0, "")
    lines = map(json.loads, results.read_text().splitlines())
    return {(line["query"], line["frame"]): line["result"][0]["label"] for line in lines}

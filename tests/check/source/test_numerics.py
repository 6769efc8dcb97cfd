"""Comparison of a bundle with its source: on frames of the feed, on noise where there are none, and what is excused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import query, save
from tiny_models import tiny

from gemel.bundles.reader import open_bundle
from gemel.check.source import numerics
from gemel.check.source.numerics import Comparison, compare_with_source
from gemel.check.source.source_model import relative_difference
from gemel.compiler import compile_workload
from gemel.workload import Workload, load_workload

Call = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("one_thread")


def compared(folder: Path) -> list[Comparison]:
    workload = load_workload(folder / "workload.yaml")
    return list(compare_with_source(open_bundle(folder / "bundle"), workload, rtol=1e-3, atol=1e-5))


def test_frames_of_the_feed_and_their_answers(bundle_folder: Path) -> None:
    for found in compared(bundle_folder):
        assert found.passed and found.relative < 1e-4
        assert found.inputs == "on 8 frames of feed yard"
        assert found.answers is not None and found.answers.frames == 8
        assert found.answers.different is None and found.answers.parts == 24  # three classes a frame
        assert found.constant == ()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("rtsp://${GEMEL_NOT_SET}/live", "on noise, because feed yard is a camera"),
        ("nowhere.mp4", "on noise, because feed 'yard': source 'nowhere.mp4' does not exist"),
    ],
)
def test_noise_where_there_are_no_frames(bundle_folder: Path, source: str, words: str) -> None:
    document = json.loads((bundle_folder / "workload.yaml").read_text())
    document["feeds"]["yard"]["source"] = source
    (bundle_folder / "workload.yaml").write_text(json.dumps(document))
    for found in compared(bundle_folder):
        assert found.passed and found.answers is None
        assert found.inputs.startswith(words)


def test_an_output_that_hardly_changes_is_named(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    from helpers import write_video

    write_video(tmp_path / "yard.mp4")
    model = tiny(0)
    with torch.no_grad():
        model.head.weight.mul_(1e-6)
    save(model, tmp_path / "a.safetensors")
    workload = workload_in(query("a"))
    bundle = compile_workload(workload, tmp_path / "bundle").path
    (found,) = compare_with_source(open_bundle(bundle), workload, rtol=1e-3, atol=1e-5)
    assert found.constant == ("logits",)


def test_another_model_is_named_with_its_answers(bundle_folder: Path, gemel: Call, tmp_path: Path) -> None:
    save(tiny(9), bundle_folder / "b.safetensors")
    report = tmp_path / "check.json"
    arguments = (bundle_folder / "bundle", "--against", bundle_folder / "workload.yaml", "--json", report)
    code, out, _ = gemel("check", *arguments)
    assert code == 1
    assert out.splitlines()[-1] == "failed: b"
    lines = [line for line in out.splitlines() if line.split()[:2] in (["outputs", "b:"], ["answers", "b:"])]
    assert len(lines) == 2 and all("differs" in line or "scores differ" in line for line in lines)
    found = json.loads(report.read_text())["models"]["b"]
    assert found["passed"] is False and found["answers"]["different"] and found["inputs"] == "on 8 frames of feed yard"


def test_differences_of_onnx_runtime_itself_are_not_blamed_on_the_bundle(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tiny(9), bundle_folder / "b.safetensors")
    monkeypatch.setattr(numerics, "file_difference", lambda path, inputs: 10.0)
    found = {each.model: each for each in compared(bundle_folder)}
    assert found["b"].passed is None
    assert found["b"].reason == "ONNX Runtime's own optimised and plain runs of the source differ by 1.0e+01"
    # A difference that is much larger than ONNX Runtime's own is the bundle's.
    monkeypatch.setattr(numerics, "file_difference", lambda path, inputs: 2e-3)
    assert {each.model: each.passed for each in compared(bundle_folder)} == {"a": True, "b": False}


@pytest.mark.parametrize(
    ("found", "reference", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.2], [1.0, 2.0], pytest.approx(0.1)),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([0.5], [0.0], 0.5),
        ([1, 2, 3, 5], [1, 2, 3, 4], 0.25),
        ([True, False], [True, True], 0.5),
        ([], [], 0.0),
    ],
)
def test_relative_difference(found: list[Any], reference: list[Any], expected: float) -> None:
    assert relative_difference(np.array(found), np.array(reference)) == expected

"""Contents of a bundle as figures and tables: inputs, queries, feeds and the least memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from stem_bundles import stem_workload

from gemel.bundles.manifest import InputSpec
from gemel.bundles.reader import open_bundle
from gemel.check.contents.input_words import describe_input, input_figures
from gemel.check.contents.inspect import describe, least_memory
from gemel.check.contents.inspect_tables import bundle_tables, shown_source
from gemel.compiler import compile_workload
from gemel.workload import Workload


def printed(bundle: Path) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        opened = open_bundle(bundle)
        for table in bundle_tables(opened, describe(opened)):
            console.print(table, soft_wrap=isinstance(table, str))
    return capture.get()


def test_figures(bundle: Path) -> None:
    opened = open_bundle(bundle)
    figures = describe(opened)
    assert figures["queries"]["c"] == {
        "feed": "gate", "model": "a", "task": "classification", "labels": None, "classes": None, "threshold": None,
        "target": 0.95, "sla_ms": None, "min_fps": 0.0, "weight": 1.0, "priority": 0, "staleness": None,
    }  # fmt: skip
    assert figures["feeds"]["gate"]["loop"] is True
    given = figures["models"]["a"]["input"]
    assert (given["size"], given["layout"], given["dtype"], given["given"]) == ([32, 32], "NCHW", "float32", ["size"])
    device = figures["device"]
    assert (device["backend"], device["memory"], device["sla_ms"]) == ("ort-cpu", "all", 100.0)
    assert device["least_bytes"] == least_memory(opened) >= max(model["bytes"] for model in figures["models"].values())


def test_tables(bundle: Path) -> None:
    lines = printed(bundle).splitlines()
    (row,) = [line.split() for line in lines if line.split()[:1] == ["c"]]
    assert row[:2] == ["c", "gate"] and row[-3:] == ["classification", "a", "numbers"]
    assert (
        "input of a: 32 x 32 (height x width), NCHW float32, rgb, scale 1/255, mean [0.485, 0.456, 0.406],"
        " std [0.229, 0.224, 0.225] (ImageNet's), stretch; given: size; the rest: the model's defaults"
    ) in lines
    assert any(line.startswith("device: ort-cpu, memory all (at least 0.0") for line in lines)


def test_stems(bundle: Path, tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    assert "stem: " not in printed(bundle)
    report = compile_workload(stem_workload(tmp_path, workload_in, [0, 1, 2], [0, 1, 8]), tmp_path / "made")
    (stem,) = describe(open_bundle(report.path))["stems"].values()
    assert stem == {"models": ["a", "b"], "bytes": 4 * 9 * 16 * (3 + 16)}
    assert "stem: a, b begin with the same layers, of 0.01 MB" in printed(report.path).splitlines()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "320 x 240 (height x width), NCHW float32, rgb, scale 1/255, mean 0, std 1, stretch"),
        (
            {"scale": 1.0, "mean": [127.5], "std": [128], "color": "bgr", "fit": "letterbox", "pad": 114},
            "320 x 240 (height x width), NCHW float32, bgr, scale 1, mean 127.5, std 128, letterbox with 114",
        ),
    ],
)
def test_inputs_in_words(bundle: Path, changes: dict[str, Any], expected: str) -> None:
    model = open_bundle(bundle).manifest.models["a"]
    spec = InputSpec.model_validate({"size": [320, 240], **changes})
    model = model.model_copy(update={"input": spec, "source": {"input": changes}})
    given = "given: color, scale, mean, std, fit, pad; the rest" if changes else "all"
    assert describe_input(input_figures(model)) == f"{expected}; {given}: the model's defaults"


def test_passwords_of_cameras_are_not_shown() -> None:
    assert shown_source("rtsp://me:secret@camera/1") == "rtsp://***@camera/1"
    assert shown_source("/videos/a@b.mp4") == "/videos/a@b.mp4"

"""Refusal of bundles that are damaged, tampered with or too new, before any model runs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import edit_json

from gemel.bundles.goals import QueryGoals
from gemel.bundles.reader import MANIFEST, open_bundle, verify
from gemel.errors import BundleError


def test_a_good_one(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert set(verify(opened)) == {"a.onnx", "b.onnx", "weights.bin"}
    model = opened.manifest.models["a"]
    tensor = opened.tensor(model.stages["main"].weights[0])
    assert tensor.dtype == np.float32
    assert not tensor.flags.writeable


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a bundle \(no manifest\.json\)"):
        open_bundle(tmp_path)


def test_manifest_is_not_json(bundle: Path) -> None:
    (bundle / MANIFEST).write_text("{")
    with pytest.raises(BundleError, match=r"manifest\.json: not JSON"):
        open_bundle(bundle)


def test_truncated_blob(bundle: Path) -> None:
    blob = bundle / "weights.bin"
    blob.write_bytes(blob.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"weights\.bin: has \d+ bytes, the manifest says \d+; it was truncated"):
        open_bundle(bundle)


def test_corrupted_blob(bundle: Path) -> None:
    blob = bundle / "weights.bin"
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    with pytest.raises(BundleError, match=r"weights\.bin: content is damaged: sha256"):
        list(verify(open_bundle(bundle)))


def test_missing_file(bundle: Path) -> None:
    (bundle / "b.onnx").unlink()
    with pytest.raises(BundleError, match=r"b\.onnx: is missing"):
        open_bundle(bundle)


def test_newer_major_version(bundle: Path) -> None:
    edit_json(bundle / MANIFEST, lambda document: document.update(schema_version="3.0"))
    with pytest.raises(BundleError, match=r"schema_version 3\.0 is newer than 2\.0.*upgrade gemel"):
        open_bundle(bundle)


def test_newer_minor_version_with_new_fields(bundle: Path) -> None:
    edit_json(bundle / MANIFEST, lambda document: document.update(schema_version="1.7", invented_later={"a": 1}))
    assert open_bundle(bundle).manifest.schema_version == "1.7"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "sub\\file"])
@pytest.mark.parametrize("where", ["files", "blob", "stage"])
def test_paths_that_leave_the_bundle(bundle: Path, name: str, where: str) -> None:
    def change(document: dict[str, Any]) -> None:
        if where == "files":
            document["files"][name] = document["files"].pop("b.onnx")
        elif where == "blob":
            document["blob"] = name
        else:
            document["models"]["a"]["stages"]["main"]["file"] = name

    edit_json(bundle / MANIFEST, change)
    with pytest.raises(BundleError, match=r"is not a plain file name; files of a bundle lie directly in its folder"):
        open_bundle(bundle)


def test_a_link_that_leaves_the_bundle(bundle: Path, tmp_path: Path) -> None:
    (bundle / "b.onnx").rename(tmp_path / "elsewhere.onnx")
    (bundle / "b.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match=r"b\.onnx: is a link"):
        open_bundle(bundle)


SSD = {
    "kind": "ssd",
    "classes": 2,
    "anchors": "nowhere",
    "activation": "softmax",
    "background": True,
    "box_weights": [1, 1, 1, 1],
}
FASTER_RCNN = {
    "kind": "faster-rcnn",
    "classes": 2,
    "anchors": ["nowhere"],
    "roi_levels": [0],
    "roi_scales": [0.25],
}


def test_a_manifest_nested_too_deeply(bundle: Path) -> None:
    (bundle / MANIFEST).write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(BundleError, match="nested too deeply"):
        open_bundle(bundle)


def test_a_pipe_is_not_opened(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    os.mkfifo(bundle / MANIFEST)
    with pytest.raises(BundleError, match=r"manifest\.json: is not a file"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: next(iter(d["tensors"].values())).update(offset=1 << 40), "outside the blob"),
        (lambda d: next(iter(d["tensors"].values())).update(offset=-64), "offset: .*greater than or equal to 0"),
        (lambda d: next(iter(d["tensors"].values())).update(dtype="object"), "dtype: .*should match pattern"),
        (lambda d: d["models"].update({"../up": d["models"].pop("b")}), "models.../up.*should match pattern"),
        (lambda d: d["models"]["a"]["stages"].update({"../../up": {}}), "should match pattern"),
        (lambda d: d["models"]["a"]["stages"]["main"].update(program="../up"), "program: .*should match pattern"),
        (lambda d: next(iter(d["tensors"].values())).update(shape=[7]), "is not \\d+ bytes"),
        (lambda d: d["segments"]["s0"].update(length=1 << 40), "outside the blob"),
        (lambda d: d["models"]["a"].update(segments=["s99"]), "segment 's99' is not listed"),
        (lambda d: d["models"]["a"]["stages"]["main"].update(weights=["0" * 32]), "a.onnx refers to a tensor, file or"),
        (lambda d: d["queries"]["a"].update(model="z"), "queries.a: model 'z'"),
        (lambda d: d["queries"].update(a={"feed": "yard"}), "queries.a.model: Field required"),
        (lambda d: next(iter(d["tensors"].values())).update(shape=[1 << 62, 4], length=0), "is not 0 bytes"),
        (lambda d: next(iter(d["tensors"].values())).update(shape=[0] * 70, length=0), "is not 0 bytes"),
        (lambda d: d.update(schema_version="²"), "schema_version is '²'; expected"),
        (lambda d: d.update(schema_version="9" * 5000), "schema_version is '999"),
        (lambda d: d["device"].update(memory="lots"), "device.memory: 'lots' is not allowed: bytes such as"),
        (lambda d: d["device"].update(memory=-1), "device.memory: -1 is not allowed: at least 0 bytes"),
        (lambda d: d["feeds"]["yard"].update(fps=0), "feeds.yard.fps: 0.0 is not allowed: more than 0"),
        (lambda d: d["feeds"]["yard"].update(fps=math.nan), "feeds.yard.fps: .*finite"),
        (lambda d: d.update(sla_ms=math.inf), "sla_ms: .*finite"),
        (lambda d: d.update(objective="fair"), "objective: Input should be 'max-min', 'sum'"),
        (lambda d: d["queries"]["a"].update(weight=-1), "queries.a.weight: .*greater than 0"),
        (lambda d: d["queries"]["a"].update(weight=math.inf), "queries.a.weight: .*finite"),
        (lambda d: d["queries"]["a"].update(min_fps=-1), "queries.a.min_fps: .*greater than or equal to 0"),
        (
            lambda d: d["queries"]["a"].update(min_fps=11),
            "queries.a.min_fps: 11 is not allowed: at most the 10 frames per second of feed yard",
        ),
        (lambda d: d["queries"]["a"].update(sla_ms=0), "queries.a.sla_ms: .*greater than 0"),
        (lambda d: d["queries"]["a"].update(priority="high"), "queries.a.priority: .*integer"),
        (lambda d: d["models"]["a"]["input"].update(size=[0, 32]), "input.size: \\[0, 32\\] is not allowed"),
        (
            lambda d: d["models"]["a"]["input"].update(size=[60000, 60000]),
            "input.size: \\[60000, 60000\\] is not allowed: at most 33,177,600 pixels",
        ),
        (lambda d: d["models"]["a"].update(bytes=-1), "models.a: bytes: -1 is not allowed"),
        (lambda d: next(iter(d["programs"].values())).update(inputs=-1), "inputs: -1 is not allowed"),
        (lambda d: d["models"]["a"].update(stages={}), "a stage 'main' with at least one input is expected"),
        (lambda d: d["models"]["a"]["stages"]["main"].update(inputs=[]), "a stage 'main' with at least one input"),
        (lambda d: d["models"]["a"].update(decode=SSD), "decode.anchors: tensor 'nowhere' is not listed"),
        (lambda d: d["models"]["a"].update(decode=FASTER_RCNN), "decode.anchors: tensor 'nowhere' is not listed"),
        (lambda d: d.update(files={**d["files"], "a" * 300: d["files"]["a.onnx"]}), "is not a plain file name"),
        (lambda d: d.update(files={**d["files"], "\ud800": d["files"]["a.onnx"]}), "is not a plain file name"),
    ],
)
def test_inconsistent_manifests(bundle: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    edit_json(bundle / MANIFEST, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_a_bundle_from_before_there_were_goals(bundle: Path) -> None:
    def older(document: dict[str, Any]) -> None:
        del document["objective"]
        for query in document["queries"].values():
            for name in QueryGoals.model_fields:
                del query[name]

    edit_json(bundle / MANIFEST, older)
    content = open_bundle(bundle).manifest
    assert content.objective == "max-min"
    for name, query in content.queries.items():
        assert query.model_dump(include=set(QueryGoals.model_fields)) == QueryGoals().model_dump()
        assert content.sla_of(name) == content.sla_ms

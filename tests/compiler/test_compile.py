"""Compilation of a workload: sharing survives, mistakes are named, no bundle is half-written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import query, save
from tiny_models import TinyTransformer, tiny

from gemel.bundles.reader import open_bundle
from gemel.check.source.numerics import compare_with_source
from gemel.compiler import compile_workload
from gemel.compiler.passes import BatchNormChoice, choose_batch_norm
from gemel.compiler.writing.writer import _feed
from gemel.errors import BundleError, CompileError, ModelError, SharingLostError, WorkloadError
from gemel.workload import Workload, load_workload
from gemel.workload.document.schema import FeedSettings

Make = Callable[..., Workload]


def write_pair(folder: Path) -> None:
    """Write the weights of two models with equal kernels and their own BatchNorms."""
    first = tiny(0)
    save(first, folder / "a.safetensors")
    save(tiny(1, kernels_of=first), folder / "b.safetensors")


def test_equal_kernels_are_stored_once_and_both_outputs_are_right(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder / "bundle")
    first, second = (set(bundle.manifest.models[name].stages["main"].weights) for name in "ab")
    shapes = {bundle.manifest.tensors[tensor].shape for tensor in first & second}
    # The depthwise kernel is folded: sharing it saves less than its BatchNorm costs.
    assert shapes >= {(16, 3, 3, 3), (32, 16, 1, 1), (3, 32)}
    assert (16, 1, 3, 3) in {bundle.manifest.tensors[tensor].shape for tensor in first ^ second}
    results = list(compare_with_source(bundle, load_workload(bundle_folder / "workload.yaml"), rtol=1e-4, atol=1e-6))
    assert [result.model for result in results] == ["a", "b"]
    assert all(result.passed for result in results), results
    outputs = {name: bundle.manifest.models[name].stages["main"].program for name in "ab"}
    assert outputs["a"] == outputs["b"]


def test_queries_of_one_model_share_it(bundle_folder: Path) -> None:
    manifest = open_bundle(bundle_folder / "bundle").manifest
    assert set(manifest.models) == {"a", "b"}
    assert {name: spec.model for name, spec in manifest.queries.items()} == {"a": "a", "b": "b", "c": "a"}


def test_feeds_of_files_become_absolute(bundle_folder: Path) -> None:
    sources = {spec.source for spec in open_bundle(bundle_folder / "bundle").manifest.feeds.values()}
    assert all(Path(source).is_absolute() and source.endswith("yard.mp4") for source in sources)


def test_a_file_has_one_path_whichever_folder_names_it(tmp_path: Path) -> None:
    for folder in ("merged", "elsewhere/deep"):
        (tmp_path / folder).mkdir(parents=True)
    feed = FeedSettings(source="../yard.mp4")
    assert _feed(feed, tmp_path / "merged").source == str(tmp_path / "yard.mp4")
    # Behind a link to a folder, ".." is another one.
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    assert _feed(feed, tmp_path / "link").source == str(tmp_path / "link" / ".." / "yard.mp4")


@pytest.mark.parametrize("source", ["${CAMERA}", "${HOST}/1", "rtsp://user:${PASSWORD}@camera/1"])
def test_addresses_of_cameras_keep_their_variables(
    source: str, tmp_path: Path, workload_in: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = {"CAMERA": "rtsp://user:secret@camera/2", "HOST": "rtsp://user:secret@camera", "PASSWORD": "secret"}
    for name, value in addresses.items():
        monkeypatch.setenv(name, value)
    save(tiny(0), tmp_path / "a.safetensors")
    bundle = compile_workload(workload_in(query("a"), feeds={"yard": {"source": source}}), tmp_path / "bundle")
    assert bundle.manifest.feeds["yard"].source == source
    assert "secret" not in (tmp_path / "bundle" / "manifest.json").read_text()


def test_compiling_again_gives_the_same_bytes(tmp_path: Path, workload_in: Make) -> None:
    write_pair(tmp_path)
    workload = workload_in(query("a"), query("b"))
    for name in ("one", "two"):
        compile_workload(workload, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["a.onnx", "b.onnx", "manifest.json", "weights.bin"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_onnx_files_open_as_they_are(bundle_folder: Path) -> None:
    import onnx
    import onnxruntime as ort

    path = bundle_folder / "bundle" / "a.onnx"
    onnx.checker.check_model(str(path))
    session = ort.InferenceSession(str(path))
    assert session.run(None, {"image": np.zeros((2, 3, 32, 32), np.float32)})[0].shape == (2, 3)


def test_lost_sharing_names_the_layer(tmp_path: Path, workload_in: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path)
    # A broken choice: a BatchNorm that must be kept is folded.
    broken = lambda *given: BatchNormChoice(frozenset(), choose_batch_norm(*given).waived)  # noqa: E731
    monkeypatch.setattr("gemel.compiler.compile.choose_batch_norm", broken)
    with pytest.raises(SharingLostError, match=r"stem\.weight of a and stem\.weight of b"):
        compile_workload(workload_in(query("a"), query("b")), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["cat", "dog"]}, r"query a: labels: 2 given \(cat, dog\); the model has 3 classes"),
        ({"task": "detection"}, "query a: TinyNet: no decoder for task detection with outputs"),
    ],
)
def test_queries_that_do_not_fit_the_model(
    tmp_path: Path, workload_in: Make, changes: dict[str, Any], message: str
) -> None:
    save(tiny(0), tmp_path / "a.safetensors")
    with pytest.raises((WorkloadError, ModelError), match=message):
        compile_workload(workload_in({**query("a"), **changes}), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_missing_weights_leave_nothing_behind(tmp_path: Path, workload_in: Make) -> None:
    with pytest.raises(ModelError, match=r"query a: weights: .*a\.safetensors: no such file"):
        compile_workload(workload_in(query("a")), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["workload.yaml"]


def test_a_failure_while_writing_keeps_the_old_bundle(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = bundle_folder / "bundle"
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    around = {path.name for path in bundle_folder.iterdir()}

    def full(*args: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gemel.bundles.blob.write_blob", full)
    with pytest.raises(OSError, match="No space left"):
        compile_workload(load_workload(bundle_folder / "workload.yaml"), output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert {path.name for path in bundle_folder.iterdir()} == around


def test_an_old_bundle_is_replaced_and_another_folder_is_not(tmp_path: Path, workload_in: Make) -> None:
    save(tiny(0), tmp_path / "a.safetensors")
    workload = workload_in(query("a"))
    output = tmp_path / "bundle"
    compile_workload(workload, output)
    (output / "device-cache").mkdir()
    compile_workload(workload, output)
    assert not (output / "device-cache").exists()
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "cat.jpg").touch()
    for _ in range(2):
        with pytest.raises(BundleError, match=re.escape(f"{precious}: holds cat.jpg, which is not of a bundle")):
            compile_workload(workload, precious)
        assert (precious / "cat.jpg").exists()
        # A manifest.json alone does not make a folder a bundle.
        (precious / "manifest.json").write_text("{}")


def test_places_that_cannot_be_written(tmp_path: Path, workload_in: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that such a place is refused before any work: the workload has no weights, which would fail later."""
    workload = workload_in(query("a"))
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for output in (tmp_path / "file", tmp_path / "file" / "bundle", tmp_path / "link", Path()):
        with pytest.raises(BundleError, match=r"is not a folder|cannot be written|is a link|is not of a bundle"):
            compile_workload(workload, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "workload.yaml"]


def test_the_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gemel.bundles.replace_bundle.replace_folder", broken)
    with pytest.raises(KeyboardInterrupt):
        compile_workload(load_workload(bundle_folder / "workload.yaml"), bundle_folder / "bundle")
    open_bundle(bundle_folder / "bundle")
    assert not list(bundle_folder.glob(".*"))


def test_transformers_keep_their_weights_constant(tmp_path: Path, workload_in: Make) -> None:
    save(TinyTransformer(), tmp_path / "t.safetensors")
    save(tiny(0), tmp_path / "a.safetensors")
    workload = workload_in(query("t", "tiny_models:TinyTransformer"), query("a"))
    bundle = open_bundle(compile_workload(workload, tmp_path / "bundle").path)
    assert {name: model.mode for name, model in bundle.manifest.models.items()} == {"t": "constant", "a": "bound"}
    assert all(result.passed for result in compare_with_source(bundle, workload, rtol=1e-4, atol=1e-6))


def test_models_that_cannot_be_exported(tmp_path: Path, workload_in: Make) -> None:
    module = tmp_path / "odd_models.py"
    module.write_text(
        "import torch\n"
        "class Branch(torch.nn.Module):\n"
        "    def forward(self, image):\n"
        "        return image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3))\n"
    )
    spec = query("a", "odd_models:Branch")
    del spec["model"]["weights"]
    with pytest.warns(UserWarning, match="no weights"), pytest.raises(CompileError, match=r"query a: torch\.onnx"):
        compile_workload(workload_in(spec), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_check_needs_the_right_workload(bundle_folder: Path) -> None:
    document = json.loads((bundle_folder / "workload.yaml").read_text())
    document["queries"] = document["queries"][1:]
    (bundle_folder / "other.yaml").write_text(json.dumps(document))
    bundle = open_bundle(bundle_folder / "bundle")
    with pytest.raises(BundleError, match="has no query 'a'"):
        list(compare_with_source(bundle, load_workload(bundle_folder / "other.yaml"), rtol=1e-3, atol=1e-5))


def test_check_sees_another_input(bundle_folder: Path) -> None:
    text = (bundle_folder / "workload.yaml").read_text().replace('"size": [32, 32]', '"size": [32, 32], "scale": 1.0')
    (bundle_folder / "workload.yaml").write_text(text)
    bundle = open_bundle(bundle_folder / "bundle")
    with pytest.raises(BundleError, match="query a: the bundle was compiled for another input"):
        list(compare_with_source(bundle, load_workload(bundle_folder / "workload.yaml"), rtol=1e-3, atol=1e-5))


def test_check_sees_another_model(bundle_folder: Path) -> None:
    save(tiny(5), bundle_folder / "a.safetensors")
    bundle = open_bundle(bundle_folder / "bundle")
    first, second = compare_with_source(bundle, load_workload(bundle_folder / "workload.yaml"), rtol=1e-3, atol=1e-5)
    assert (first.passed, second.passed) == (False, True)

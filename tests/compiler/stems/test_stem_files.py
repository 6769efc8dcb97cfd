"""Stems in bundles: files that compute what the whole model does, and entries in the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from helpers import query, save
from numpy.typing import NDArray
from stem_bundles import stem_workload
from tiny_models import tiny

from gemel.bundles.manifest import Manifest
from gemel.bundles.program import tensors_of
from gemel.bundles.reader import MANIFEST, open_bundle, verify
from gemel.compiler import compile_workload
from gemel.compiler.stems import stem_files
from gemel.compiler.stems.cut_graph import cut_graphs
from gemel.compiler.stems.stem_files import add_stems
from gemel.workload import Workload

Make = Callable[..., Workload]


def compiled(tmp_path: Path, workload_in: Make, *seeds: Sequence[int]) -> tuple[Manifest, list[str]]:
    """Compile models with the given kernels, and return the manifest and the lines about stems."""
    lines: list[str] = []
    workload = stem_workload(tmp_path, workload_in, *seeds)
    report = compile_workload(workload, tmp_path / "bundle", lambda name, what: lines.append(f"{name}: {what}"))
    return report.manifest, [line for line in lines if line.startswith("stems:")]


def test_parts_compute_what_the_whole_computes(tmp_path: Path, workload_in: Make) -> None:
    content, lines = compiled(tmp_path, workload_in, [0, 1, 2], [0, 1, 8])
    assert lines == ["stems: a, b share a stem: 2 layers, 54% of their models' weights"]
    folder = tmp_path / "bundle"
    opened = open_bundle(folder)
    assert opened.manifest == content
    assert {"a.stem.onnx", "a.rest.onnx", "b.stem.onnx", "b.rest.onnx"} <= {*verify(opened)}
    image: NDArray[np.float32] = np.random.default_rng(1).random((3, 3, 16, 16), np.float32)
    kept = None
    for model in content.models.values():
        assert model.stem is not None
        assert set(model.stages) == {"main"}
        (port,) = model.stem.stem.inputs
        values = {port.name: image}
        outputs = run(folder / model.stem.stem.file, values)
        kept = outputs if kept is None else kept
        assert all(np.array_equal(one, other) for one, other in zip(kept, outputs, strict=True))
        values |= dict(zip((each.name for each in model.stem.stem.outputs), outputs, strict=True))
        found = run(folder / model.stem.rest.file, {each.name: values[each.name] for each in model.stem.rest.inputs})
        expected = run(folder / model.stages["main"].file, {model.stages["main"].inputs[0].name: image})
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    one, other = (content.models[name].stem for name in "ab")
    assert one is not None and other is not None
    assert (one.id, one.stem.program, one.stem.weights) == (other.id, other.stem.program, other.stem.weights)
    assert one.rest.weights != other.rest.weights


def test_exported_modules_have_a_stem_too(tmp_path: Path, workload_in: Make, one_thread: None) -> None:
    first = tiny(0)
    save(first, tmp_path / "a.safetensors")
    second = tiny(0)
    second.head.weight.data.add_(1)
    save(second, tmp_path / "b.safetensors")
    lines: list[str] = []
    workload = workload_in(query("a"), query("b"))
    content = compile_workload(workload, tmp_path / "bundle", lambda name, what: lines.append(what)).manifest
    assert any("a, b share a stem: 3 layers" in line for line in lines), lines
    stem = content.models["b"].stem
    assert stem is not None and len(stem.stem.outputs) == 1
    # The heads differ, and all before them is equal.
    assert len(stem.rest.weights) == 2
    assert stem.rest.outputs == content.models["b"].stages["main"].outputs


def run(file: Path, inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    found: list[NDArray[np.float32]] = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, inputs)
    return found


def test_tensors_segments_and_programs_are_those_of_the_whole_models(tmp_path: Path, workload_in: Make) -> None:
    content, _ = compiled(tmp_path, workload_in, [0, 1, 2], [0, 1, 8])
    for model in content.models.values():
        assert model.stem is not None
        assert {*model.stem.stem.weights, *model.stem.rest.weights} == {*model.stages["main"].weights}
    assert content.programs.keys() == {model.stages["main"].program for model in content.models.values()}
    assert {name for segment in content.segments.values() for name in segment.models} == {"a", "b"}


def test_a_bundle_without_stems_stays_as_it_was_written(tmp_path: Path, workload_in: Make) -> None:
    content, lines = compiled(tmp_path, workload_in, [0, 1, 2], [9, 1, 8])
    assert not lines
    assert all(model.stem is None for model in content.models.values())
    assert set(content.files) == {"a.onnx", "b.onnx", "weights.bin"}
    before = (tmp_path / "bundle" / MANIFEST).read_bytes()
    assert add_stems(tmp_path / "bundle", content, lambda name, what: None) is content
    assert (tmp_path / "bundle" / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("change", [{"mode": "constant"}, {"precision": "int8"}, {"precision": "fp16"}])
def test_private_copies_have_no_stem(tmp_path: Path, workload_in: Make, change: dict[str, str]) -> None:
    content, _ = compiled(tmp_path, workload_in, [0, 1, 2], [0, 1, 8])
    models = {name: model.model_copy(update={"stem": None, **change}) for name, model in content.models.items()}
    lines: list[str] = []
    changed = content.model_copy(update={"models": models})
    assert add_stems(tmp_path / "bundle", changed, lambda name, what: lines.append(what)) is changed
    assert not lines


def test_a_stem_that_gives_other_outputs_is_left_out(
    tmp_path: Path, workload_in: Make, monkeypatch: pytest.MonkeyPatch
) -> None:

    def wrong(*arguments: object) -> object:
        """Cut the graphs, and make the rest of ``b`` negate its output."""
        parts = cut_graphs(*arguments)  # type: ignore[arg-type]
        next(node for node in parts.rests["b"].graph.node if node.op_type == "Relu").op_type = "Neg"
        return parts

    monkeypatch.setattr(stem_files, "cut_graphs", wrong)
    content, lines = compiled(tmp_path, workload_in, [0, 1, 2], [0, 1, 8])
    assert len(lines) == 1
    assert lines[0].startswith("stems: a, b: no stem, the parts of b differ from the whole: output y by ")
    assert all(model.stem is None for model in content.models.values())
    assert not list((tmp_path / "bundle").glob("*.stem.onnx")) + list((tmp_path / "bundle").glob("*.rest.onnx"))
    open_bundle(tmp_path / "bundle")


def test_a_stem_that_does_not_run_is_left_out(
    tmp_path: Path, workload_in: Make, monkeypatch: pytest.MonkeyPatch
) -> None:

    def wrong(*arguments: object) -> object:
        parts = cut_graphs(*arguments)  # type: ignore[arg-type]
        parts.stem.graph.node[0].op_type = "Nothing"
        return parts

    monkeypatch.setattr(stem_files, "cut_graphs", wrong)
    content, lines = compiled(tmp_path, workload_in, [0, 1, 2], [0, 1, 8])
    assert "the parts of a differ from the whole" in lines[0] and "Nothing" in lines[0]
    assert all(model.stem is None for model in content.models.values())


def test_a_part_that_needs_a_tensor_of_its_own_is_left_out(
    tmp_path: Path, workload_in: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stem_files, "tensors_of", lambda *given: {**tensors_of(*given), "w0": "a" * 32})
    _, lines = compiled(tmp_path, workload_in, [0, 1, 2], [0, 1, 8])
    assert lines == ["stems: a, b: no stem, the parts of a would need more tensors than the whole"]

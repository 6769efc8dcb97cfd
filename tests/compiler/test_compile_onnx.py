"""Workloads of ONNX files: compiled, run, and compared with the files; trouble names query, file and operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers import query, save
from onnx import TensorProto, helper
from onnx_graphs import N, tensor, weight, write_graph, write_values
from tiny_models import tiny

from gemel.bundles.reader import open_bundle
from gemel.check.source.numerics import compare_with_source
from gemel.compiler import Report, compile_workload
from gemel.errors import CompileError, GemelError, ModelError, WorkloadError
from gemel.workload import Workload

Make = Callable[..., Workload]
CONV = N("Conv", ["image", "w"], ["c"], pads=[1] * 4)
TAIL = [N("GlobalAveragePool", ["c"], ["g"]), N("Flatten", ["g"], ["y"])]
NORM = [tensor(name, np.random.default_rng(seed).random(64, np.float32) + 0.5) for seed, name in enumerate("sbmv")]


def onnx_query(name: str, **changes: Any) -> dict[str, Any]:
    """Return a query with the file ``<name>.onnx``."""
    return {"name": name, "feed": "yard", "task": "embedding", "model": {"onnx": f"{name}.onnx"}, **changes}


def compiled(workload: Workload, folder: Path) -> Report:
    """Compile a workload and check the bundle's outputs against the files."""
    report = compile_workload(workload, folder / "bundle")
    results = list(compare_with_source(open_bundle(report.path), workload, rtol=1e-4, atol=1e-6))
    # The runs of older versions of ONNX Runtime, optimised and plain, differ from each other by more than a bundle may.
    own = "ONNX Runtime's own optimised and plain runs"
    assert all(result.passed or (result.passed is None and own in str(result.reason)) for result in results), results
    return report


def normed(path: Path, *, before: list[onnx.NodeProto] = [], kernel: str = "w", seed: int = 0) -> Path:  # noqa: B006
    """Write a convolution of 64 x 64 channels, with a BatchNorm unless nodes come before it that make its kernel."""
    own = [N("BatchNormalization", ["k", "s", "b", "m", "v"], ["c"])] if not before else [N("Relu", ["k"], ["c"])]
    nodes = [
        N("Conv", ["image", "first"], ["f"], strides=[4, 4]),
        *before,
        N("Conv", ["f", kernel], ["k"], pads=[1] * 4),
        *own,
    ]
    gain = tensor("gain", np.full((64, 1, 1, 1), 1.5, np.float32))
    constants = [weight("first", 64, 3, 4, 4, seed=seed), weight("w", 64, 64, 3, 3, seed=7), gain, *NORM]
    return write_graph(path, [*nodes, *TAIL], constants, outputs={"y": ["batch", 64]})


def test_a_kernel_that_another_model_scales_itself_is_kept_apart(tmp_path: Path, workload_in: Make) -> None:
    normed(tmp_path / "a.onnx")
    normed(tmp_path / "b.onnx", before=[N("Mul", ["w", "gain"], ["wg"])], kernel="wg", seed=1)
    report = compiled(workload_in(onnx_query("a"), onnx_query("b")), tmp_path)
    shared = set.intersection(*(set(model.stages["main"].weights) for model in report.manifest.models.values()))
    assert (64, 64, 3, 3) in {report.manifest.tensors[each].shape for each in shared}


def test_small_kernels_that_are_not_shared_are_named(tmp_path: Path, workload_in: Make) -> None:
    lines: list[str] = []
    for name, operator in (("a", "BatchNormalization"), ("b", "Relu")):
        inputs = ["k", "s", "b", "m", "v"] if operator == "BatchNormalization" else ["k"]
        nodes = [N("Conv", ["image", "w"], ["k"]), N(operator, inputs, ["c"]), *TAIL]
        constants = [weight("w", 64, 3, 1, 1), *NORM]
        write_graph(tmp_path / f"{name}.onnx", nodes, constants, outputs={"y": ["batch", 64]}, image=(1, 3, 96, 96))
    workload = workload_in(onnx_query("a"), onnx_query("b"))
    compile_workload(workload, tmp_path / "bundle", lambda name, what: lines.append(what))
    assert any("not shared: 1 small kernels run faster folded, such as w of a" in line for line in lines)


def test_quantized_files_stay_quantized_and_run(tmp_path: Path, workload_in: Make) -> None:
    kernel = np.random.default_rng(0).integers(-100, 100, (64, 3, 3, 3)).astype(np.int8)
    constants = [
        tensor("w8", kernel),
        tensor("scales", np.random.default_rng(1).random(64, np.float32) / 100),
        tensor("zeros", np.zeros(64, np.int8)),
        tensor("bias32", np.arange(64, dtype=np.int32)),
        tensor("bias_scales", np.full(64, 1e-3, np.float32)),
        tensor("bias_zeros", np.zeros(64, np.int32)),
        tensor("s", np.float32(1 / 128)),
        tensor("z", np.int8(-3)),
    ]  # fmt: skip
    nodes = [
        N("QuantizeLinear", ["image", "s", "z"], ["q"]),
        N("DequantizeLinear", ["q", "s", "z"], ["x"]),
        N("DequantizeLinear", ["w8", "scales", "zeros"], ["w"], axis=0),
        N("DequantizeLinear", ["bias32", "bias_scales", "bias_zeros"], ["b"], axis=0),
        N("Conv", ["x", "w", "b"], ["k"], pads=[1] * 4),
        N("QuantizeLinear", ["k", "s", "z"], ["kq"]),
        N("DequantizeLinear", ["kq", "s", "z"], ["c"]),
        *TAIL,
    ]
    write_graph(tmp_path / "a.onnx", nodes, constants, outputs={"y": ["batch", 64]})
    manifest = compiled(workload_in(onnx_query("a")), tmp_path).manifest
    assert manifest.models["a"].mode == "constant"
    assert {manifest.tensors[each].dtype for each in manifest.models["a"].stages["main"].weights} >= {"int8"}


def test_operators_that_compute_in_integers_keep_their_scales_constant(tmp_path: Path, workload_in: Make) -> None:
    kernel = np.random.default_rng(0).integers(-100, 100, (64, 3, 3, 3)).astype(np.int8)
    scales = ["xs", "xz", "w8", "ws", "wz", "ys", "yz", "b32"]
    constants = [
        tensor("xs", np.float32(1 / 128)), tensor("xz", np.uint8(3)), tensor("w8", kernel),
        tensor("ws", np.random.default_rng(1).random(64, np.float32) / 100), tensor("wz", np.zeros(64, np.int8)),
        tensor("ys", np.float32(1 / 16)), tensor("yz", np.uint8(128)), tensor("b32", np.arange(64, dtype=np.int32)),
    ]  # fmt: skip
    nodes = [
        N("QuantizeLinear", ["image", "xs", "xz"], ["q"]),
        N("QLinearConv", ["q", *scales], ["k"], pads=[1] * 4),
        N("DequantizeLinear", ["k", "ys", "yz"], ["c"]),
        *TAIL,
    ]
    write_graph(tmp_path / "a.onnx", nodes, constants, outputs={"y": ["batch", 64]})
    manifest = compiled(workload_in(onnx_query("a")), tmp_path).manifest
    assert len(manifest.models["a"].stages["main"].weights) == 1


def test_index_tables_masks_and_outputs_that_are_weights(tmp_path: Path, workload_in: Make) -> None:
    table = np.random.default_rng(0).permutation(256)
    constants = [
        weight("w", 256, 3, 3, 3),
        tensor("table", table),
        tensor("mask", np.arange(256).reshape(1, 256, 1, 1) % 2 == 0),
        tensor("zero", np.float32(0)),
        weight("code", 32, 32),
    ]
    nodes = [
        N("Conv", ["image", "w"], ["k"], pads=[1] * 4),
        N("Gather", ["k", "table"], ["t"], axis=1),
        N("Where", ["mask", "t", "zero"], ["c"]),
        *TAIL,
    ]
    write_graph(tmp_path / "a.onnx", nodes, constants, outputs={"y": ["batch", 256], "code": [32, 32]})
    manifest = compiled(workload_in(onnx_query("a", task="raw")), tmp_path).manifest
    assert [port.name for port in manifest.models["a"].stages["main"].outputs] == ["y", "code"]


def test_float16_files_are_compiled_in_float32(tmp_path: Path, workload_in: Make) -> None:
    half = TensorProto.FLOAT16
    nodes = [
        N("Cast", ["image"], ["h"], to=half),
        N("Conv", ["h", "w"], ["k"], pads=[1] * 4),
        N("ConstantOfShape", ["shape"], ["one"], value=helper.make_tensor("v", half, [1], [1.0])),
        N("Add", ["k", "one"], ["c"]),
        N("GlobalAveragePool", ["c"], ["g"]),
        N("Flatten", ["g"], ["yh"]),
        N("Cast", ["yh"], ["y"], to=TensorProto.FLOAT),
    ]
    constants = [weight("w", 8, 3, 3, 3, dtype=np.float16), tensor("shape", np.array([1]))]
    write_graph(tmp_path / "a.onnx", nodes, constants, outputs={"y": ["batch", 8]})
    write_graph(tmp_path / "b.onnx", [CONV, *TAIL], [weight("w", 8, 3, 3, 3, dtype=np.float16)],
                outputs={"y": ["batch", 8]}, dtype=half, kinds={"y": half})  # fmt: skip
    workload = workload_in(onnx_query("a"), onnx_query("b"))
    report = compile_workload(workload, tmp_path / "bundle")
    results = list(compare_with_source(open_bundle(report.path), workload, rtol=2e-3, atol=1e-6))
    assert all(result.passed for result in results), results
    assert {tensor.dtype for tensor in report.manifest.tensors.values()} == {"float32"}
    assert report.shared.groups == 1
    for model in report.manifest.models.values():
        stage = model.stages["main"]
        assert {port.dtype for port in (*stage.inputs, *stage.outputs)} == {"float32"}


def test_recurrent_layers_keep_their_weights_constant(tmp_path: Path, workload_in: Make) -> None:
    nodes = [
        N("ReduceMean", ["image"], ["m"], axes=[1], keepdims=0),
        N("Transpose", ["m"], ["t"], perm=[1, 0, 2]),
        N("LSTM", ["t", "w", "r"], ["", "y3"], hidden_size=32),
        N("Squeeze", ["y3", "axis"], ["y"]),
    ]
    constants = [weight("w", 1, 128, 16), weight("r", 1, 128, 32, seed=1), tensor("axis", np.array([0]))]
    write_graph(tmp_path / "a.onnx", nodes, constants, outputs={"y": ["batch", 32]})
    normed(tmp_path / "b.onnx")
    manifest = compiled(workload_in(onnx_query("a"), onnx_query("b")), tmp_path).manifest
    assert {name: model.mode for name, model in manifest.models.items()} == {"a": "constant", "b": "bound"}


def test_labels_of_the_file_are_used_unless_the_workload_has_some(tmp_path: Path, workload_in: Make) -> None:
    metadata = {"author": "Ultralytics", "stride": "32", "task": "classify", "names": "{0: 'cat', 1: 'dog'}"}
    scores = np.array([[0.25, 0.75]], np.float32)
    write_values(tmp_path / "a.onnx", {"output0": scores}, metadata=metadata)
    one, two = (onnx_query(name, task="classification", model={"onnx": "a.onnx"}) for name in ("one", "two"))
    workload = workload_in(one, {**two, "labels": ["x", "y"]})
    queries = compile_workload(workload, tmp_path / "bundle").manifest.queries
    assert {name: each.labels for name, each in queries.items()} == {"one": ("cat", "dog"), "two": ("x", "y")}
    assert len({each.model for each in queries.values()}) == 1


@pytest.mark.parametrize(("labels", "fits"), [(["yes"], True), (["no", "yes"], True), (["a", "b", "c"], False)])
def test_labels_of_a_binary_classifier(tmp_path: Path, workload_in: Make, labels: list[str], fits: bool) -> None:
    write_values(tmp_path / "a.onnx", {"y": np.array([[2.0]], np.float32)}, ends={"y": "Sigmoid"})
    workload = workload_in(onnx_query("a", task="classification", labels=labels))
    if fits:
        assert compile_workload(workload, tmp_path / "bundle").manifest.queries["a"].labels == tuple(labels)
        return
    with pytest.raises(WorkloadError, match=r"query a: labels: 3 given .* the model has 1 classes"):
        compile_workload(workload, tmp_path / "bundle")


def test_labels_of_a_segmentation_need_not_name_the_background(tmp_path: Path, workload_in: Make) -> None:
    write_values(tmp_path / "a.onnx", {"y": np.zeros((1, 3, 8, 8), np.float32)})
    queries = [onnx_query("a", task="segmentation", labels=labels) for labels in (["x", "y"], ["no", "x", "y"], ["x"])]
    for each in queries[:2]:
        compile_workload(workload_in(each), tmp_path / "bundle")
    with pytest.raises(WorkloadError, match=r"query a: labels: 1 given .* the model has 3 classes"):
        compile_workload(workload_in(queries[2]), tmp_path / "bundle")


def test_two_sizes_of_one_model_share_all_weights(tmp_path: Path, workload_in: Make) -> None:
    module = tiny(0).eval()
    for name, side in (("a", 64), ("b", 96)):
        torch.onnx.export(module, (torch.zeros(1, 3, side, side),), str(tmp_path / f"{name}.onnx"), verbose=False)
    # The same file at another size, and another file of the same model.
    again = onnx_query("c", model={"onnx": "a.onnx", "input": {"size": [64, 64], "scale": 1.0}})
    report = compiled(workload_in(onnx_query("a"), onnx_query("b"), again), tmp_path)
    first, *others = (set(model.stages["main"].weights) for model in report.manifest.models.values())
    assert len(first) >= 4 and all(other == first for other in others)


def test_tensors_that_rounding_keeps_apart_are_counted(tmp_path: Path, workload_in: Make) -> None:
    kernel = np.random.default_rng(0).standard_normal((64, 3, 3, 3)).astype(np.float32)
    for name, values in (("a", kernel), ("b", kernel * np.float32(1 + 1e-6)), ("c", kernel * np.float32(1 + 1e-3))):
        write_graph(tmp_path / f"{name}.onnx", [CONV, *TAIL], [tensor("w", values)], outputs={"y": ["batch", 64]})
    lines: list[str] = []
    workload = workload_in(*map(onnx_query, "abc"))
    report = compile_workload(workload, tmp_path / "bundle", lambda name, what: lines.append(what))
    found = report.nearly_equal
    assert found is not None
    assert (found.tensors, found.bytes) == (1, kernel.nbytes)
    assert {found.first[0], found.twin[0]} == {"a", "b"}
    assert any("0.0 MB in 1 tensors would be shared but for rounding, first w of" in line for line in lines)
    assert compile_workload(workload_in(onnx_query("a"), onnx_query("c")), tmp_path / "bundle").nearly_equal is None


def test_files_are_read_before_anything_is_exported(tmp_path: Path, workload_in: Make) -> None:
    save(tiny(0), tmp_path / "a.safetensors")
    port = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    body = helper.make_graph([N("Relu", ["c0"], ["o"])], "body", [], [port])
    nodes = [
        N("Conv", ["image", "w"], ["c0"], pads=[1] * 4),
        N("ReduceMax", ["c0"], ["m"], keepdims=0),
        N("Cast", ["m"], ["flag"], to=TensorProto.BOOL),
        N("If", ["flag"], ["c"], name="gate", then_branch=body, else_branch=body),
        *TAIL,
    ]
    write_graph(tmp_path / "b.onnx", nodes, [weight("w", 4, 3, 3, 3)], outputs={"y": ["batch", 4]})
    done: list[str] = []
    with pytest.raises(ModelError, match=r"^query b: \S*b\.onnx: operator If \(gate\) holds a graph"):
        compile_workload(
            workload_in(query("a"), onnx_query("b")), tmp_path / "bundle", lambda *what: done.append(what[0])
        )
    assert done == []
    assert not (tmp_path / "bundle").exists()


def test_huge_sizes_are_refused_for_every_kind_of_model(tmp_path: Path, workload_in: Make) -> None:
    save(tiny(0), tmp_path / "a.safetensors")
    normed(tmp_path / "b.onnx")
    for each in (query("a"), onnx_query("b")):
        each["model"]["input"] = {"size": [60000, 60000]}
        with pytest.raises(ModelError, match=rf"^query {each['name']}: input\.size \[60000, 60000\] has 3,600 million"):
            compile_workload(workload_in(each), tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": "detection"},
            r"^query a: \S*a\.onnx: no decoder for task detection with outputs y float32 \[1, 64\]",
        ),
        ({"task": "detection", "decode": "yolo9"}, r"^query a: decode: yolo9 is no decoder .* did you mean yolo"),
        ({"task": "ocr"}, r"^query a: \S*a\.onnx: no decoder for task ocr"),
    ],
)
def test_trouble_names_query_and_file(tmp_path: Path, workload_in: Make, changes: dict[str, str], message: str) -> None:
    normed(tmp_path / "a.onnx")
    with pytest.raises(GemelError, match=message):
        compile_workload(workload_in(onnx_query("a", **changes)), tmp_path / "bundle")


def test_trouble_that_nobody_foresaw_names_query_and_file(
    tmp_path: Path, workload_in: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: ir.Model, weights: Any) -> None:
        raise KeyError("w")

    normed(tmp_path / "a.onnx")
    monkeypatch.setattr("gemel.compiler.lowering.lower.clean", broken)
    with pytest.raises(CompileError, match=r"^query a: a\.onnx: cannot be compiled: KeyError: 'w'"):
        compile_workload(workload_in(onnx_query("a")), tmp_path / "bundle")

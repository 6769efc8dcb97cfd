"""Workloads that a merge wrote: merge.json is compared with the weights, and goes into the bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import query, save
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny_models import tiny

from gemel.bundles.blob import tensor_id
from gemel.bundles.reader import open_bundle, verify
from gemel.check.contents.inspect import describe
from gemel.check.contents.inspect_tables import bundle_tables
from gemel.compiler import compile_workload
from gemel.errors import BundleError, SharingLostError, WorkloadError
from gemel.workload import Workload, load_workload

Make = Callable[..., Workload]
KERNELS = ("stem.weight", "depthwise.weight", "pointwise.weight", "head.weight")


def report(shared: list[dict[str, Any]], models: tuple[str, ...] = ("a", "b"), **changes: Any) -> dict[str, Any]:
    entry = {"original": 0.8, "reached": 0.78, "relative": 0.975, "target": 0.95}
    return {
        "strategy": "together",
        "seed": 0,
        "original_bytes": 10000,
        "merged_bytes": 6000,
        "layer_bytes": 9000,
        "saving": 0.4,
        "layer_saving": 0.4,
        "potential": 0.5,
        "finished": True,
        "queries": {name: {"model": name, **entry} for name in models},
        "trials": [],
        "shared": shared,
        **changes,
    }


def shared(array: np.ndarray[Any, Any], *uses: tuple[str, str]) -> dict[str, Any]:
    return {
        "tensor": tensor_id(array),
        "bytes": array.nbytes,
        "uses": [{"query": model, "parameter": parameter} for model, parameter in uses],
    }


@pytest.fixture
def merged(tmp_path: Path, workload_in: Make) -> Workload:
    """Return a workload of two models with the same kernels and their own BatchNorms, with its merge.json."""
    first = tiny(0)
    save(first, tmp_path / "a.safetensors")
    save(tiny(1, kernels_of=first), tmp_path / "b.safetensors")
    state = first.state_dict()
    slots = [shared(state[name].numpy(), ("a", name), ("b", name)) for name in KERNELS]
    write(tmp_path, report(slots))
    return workload_in(query("a"), query("b"))


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "merge.json").write_text(json.dumps(content))


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "merge.json").read_text())
    return content


def compiled(workload: Workload) -> tuple[Any, list[str]]:
    lines: list[str] = []
    made = compile_workload(workload, workload.root / "bundle", lambda name, what: lines.append(f"{name}: {what}"))
    return made, [line for line in lines if line.startswith("merge")]


def test_a_bundle_shares_what_was_merged(merged: Workload) -> None:
    made, lines = compiled(merged)
    sizes = {each["uses"][0]["parameter"]: each["bytes"] for each in read(merged.root)["shared"]}
    # The depthwise kernel is folded: sharing it saves less than its BatchNorm costs.
    waived = sizes.pop("depthwise.weight")
    assert (made.merged.tensors, made.merged.shared, made.merged.waived) == (4, sum(sizes.values()), waived)
    assert made.merged.unique == sum(tensor.length for tensor in made.manifest.tensors.values())
    assert lines[0].endswith(
        "4 tensors as merge.json says but for 0.0 MB in small kernels; weights of"
        f" {made.merged.unique} bytes, it says 6000"
    )


def test_bytes_of_models_that_were_left_out_are_not_counted(merged: Workload, workload_in: Make) -> None:
    before = compiled(merged)[0].merged.unique
    write(merged.root, {**read(merged.root), "merged_bytes": before})
    save(tiny(2), merged.root / "c.safetensors")
    made, lines = compiled(workload_in(query("a"), query("b"), query("c")))
    assert lines[0].endswith(f"weights of {before} bytes, as it says")
    assert sum(tensor.length for tensor in made.manifest.tensors.values()) > before


def test_the_report_is_part_of_the_bundle(merged: Workload) -> None:
    compiled(merged)
    path = merged.root / "bundle" / "merge.json"
    bundle = open_bundle(path.parent)
    assert path.read_bytes() == (merged.root / "merge.json").read_bytes()
    assert "merge.json" in list(verify(bundle))
    shown = describe(bundle)["merge"]["queries"]["b"]
    assert {
        "original": 0.8,
        "reached": 0.78,
        "relative": 0.975,
        "target": 0.95,
        "reverted": False,
    }.items() <= shown.items()
    assert (shown["own"], shown["mix"], shown["scores"], shown["samples"], shown["notes"]) == (
        None,
        None,
        None,
        None,
        (),
    )
    assert "merged: 0.01 MB to 0.01 MB, 40.0% saved" in printed(bundle)
    path.write_text(path.read_text().replace("0.78", "0.88"))
    with pytest.raises(BundleError, match=r"merge\.json: content is damaged"):
        list(verify(bundle))
    path.write_bytes(b"[" * path.stat().st_size)
    # A bundle with a damaged merge.json still opens.
    assert "merge" not in describe(open_bundle(path.parent))
    (merged.root / "merge.json").unlink()
    made, lines = compiled(merged)
    assert (made.merged, lines) == (None, [])
    assert not path.exists()
    assert "merge" not in describe(open_bundle(path.parent))


def printed(bundle: Any) -> str:
    console = Console(width=200)
    with console.capture() as text:
        for table in bundle_tables(bundle, describe(bundle)):
            console.print(table)
    return text.get()


@pytest.mark.parametrize("name", ["depthwise.weight", "head.weight"])
def test_other_weights_are_refused(name: str, merged: Workload) -> None:
    path = merged.root / "b.safetensors"
    state = load_file(path)
    state[name].view(-1)[0] += 1e-3
    save_file(state, path)
    message = (
        rf"merge\.json says that {name} of b and {name} of a share a tensor; the weights of b differ; run gemel merge"
        " --resume"
    )
    with pytest.raises(SharingLostError, match=message):
        compiled(merged)
    assert not (merged.root / "bundle").exists()


def first_slot(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    return lambda content: change(content["shared"][0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (first_slot(lambda slot: slot.update(tensor="0" * 32)), SharingLostError, "stem.weight of a and stem.weight"),
        (
            first_slot(lambda slot: slot["uses"].append({"query": "b", "parameter": "x"})),
            WorkloadError,
            "shared.0.uses: 3; the models hold it 2 times",
        ),
        (first_slot(lambda slot: slot.update(bytes=4)), WorkloadError, "shared.0.bytes: 4; the tensor has 1728"),
        (first_slot(lambda slot: slot["uses"].append(slot["uses"][1])), WorkloadError, "stem.weight of b is there twi"),
        (first_slot(lambda slot: slot.update(tensor="../x")), WorkloadError, "shared.0.tensor: String should match"),
        (lambda content: content.pop("queries"), WorkloadError, "queries: Field required"),
        (first_slot(lambda slot: slot["uses"][1].update(query="z")), WorkloadError, "another workload.*model z, which"),
        (lambda content: content["queries"].update(z=content["queries"]["a"]), WorkloadError, "query z with model a"),
        (lambda content: content["queries"]["b"].update(model="a"), WorkloadError, "query b with model a, which workl"),
    ],
)
def test_a_report_that_was_changed_or_is_of_another_workload(
    change: Callable[[dict[str, Any]], Any], error: type[Exception], message: str, merged: Workload
) -> None:
    content = read(merged.root)
    change(content)
    write(merged.root, content)
    with pytest.raises(error, match=message):
        compiled(merged)
    assert not (merged.root / "bundle").exists()


def test_what_is_no_report_is_refused(merged: Workload) -> None:
    (merged.root / "merge.json").write_text("[1, 2")
    with pytest.raises(WorkloadError, match=r"merge\.json: Invalid JSON"):
        compiled(merged)


def linear(path: Path, kernel: np.ndarray[Any, Any], matrix: np.ndarray[Any, Any]) -> None:
    """Write a classifier whose matrix is ``[inputs, outputs]``, with names unlike those in merge.json."""
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["1"]),
        helper.make_node("GlobalAveragePool", ["1"], ["2"]),
        helper.make_node("Flatten", ["2"], ["3"]),
        helper.make_node("MatMul", ["3", "m"], ["scores"]),
    ]
    ports = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])]
    results = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, matrix.shape[1]])]
    tensors = [numpy_helper.from_array(kernel, "k"), numpy_helper.from_array(matrix, "m")]
    graph = helper.make_graph(nodes, "g", ports, results, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def test_onnx_models_hold_tensors_under_other_names(tmp_path: Path, workload_in: Make) -> None:
    rng = np.random.default_rng(0)
    kernel, matrix = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 3, 3, 3), (4, 5)))
    for name in "ab":
        linear(tmp_path / f"{name}.onnx", kernel, matrix)
    slots = [
        shared(kernel, ("a", "Conv_k.weight"), ("b", "Conv_k.weight")),
        shared(np.ascontiguousarray(matrix.T), ("a", "MatMul_m.weight"), ("b", "MatMul_m.weight")),
    ]
    write(tmp_path, report(slots))
    queries = [{**query(name), "model": {"onnx": f"{name}.onnx"}} for name in "ab"]
    made, _ = compiled(workload_in(*queries))
    assert (made.merged.tensors, made.merged.shared, made.merged.waived) == (2, kernel.nbytes + matrix.nbytes, 0)
    linear(tmp_path / "b.onnx", kernel, matrix + 1)
    with pytest.raises(SharingLostError, match=r"MatMul_m\.weight of b and MatMul_m\.weight of a"):
        compiled(workload_in(*queries))


def test_a_report_beside_its_workload_and_none_elsewhere(
    merged: Workload, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, _ = compiled(merged)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("a", "b"):
        (elsewhere / f"{name}.safetensors").write_bytes((merged.root / f"{name}.safetensors").read_bytes())
    (elsewhere / "workload.yaml").write_bytes(merged.path.read_bytes())
    alone = compile_workload(load_workload(elsewhere / "workload.yaml"), elsewhere / "bundle")
    assert alone.merged is None
    assert alone.manifest.tensors == made.manifest.tensors

"""Bundles from elsewhere whose graphs name files, unknown operators or absurd sizes: one line, and nothing is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from gemel.bundles.reader import open_bundle
from gemel.errors import GemelError
from gemel.runtime.backends.ort_cpu import OrtCpu

IMAGES = np.zeros((1, 3, 32, 32), np.float32)


def edit(bundle: Path, change: Callable[[ModelProto], None]) -> None:
    """Change the graph of model a, and state its size and hash in the manifest, as an attacker would."""
    graph = onnx.load(bundle / "a.onnx", load_external_data=False)
    change(graph)
    (bundle / "a.onnx").write_bytes(data := graph.SerializeToString())
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"]["a.onnx"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(document))


def run(bundle: Path) -> None:
    with OrtCpu(open_bundle(bundle)) as backend:
        backend.activate("a")
        backend.run("a", "main", {"image": IMAGES})


def run_or_refuse(bundle: Path) -> None:
    """Run model a; a refusal must be one line."""
    try:
        run(bundle)
    except GemelError as error:
        assert "\n" not in str(error)


def append(graph: ModelProto, *nodes: onnx.NodeProto) -> None:
    """Append nodes that make ``logits`` of ``before``, which is what the graph computed."""
    graph.graph.node[-1].output[0] = "before"
    graph.graph.node.extend(nodes)


def external(location: str) -> Callable[[ModelProto], None]:
    def change(graph: ModelProto) -> None:
        tensor = graph.graph.initializer.add(name="more", data_type=TensorProto.FLOAT, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "4")):
            tensor.external_data.add(key=key, value=value)
        append(graph, helper.make_node("Add", ["before", "more"], ["logits"]))

    return change


@pytest.mark.parametrize("place", ["../secret", "absolute", "missing", "/dev/zero"])
def test_weights_that_are_elsewhere(place: str, bundle: Path) -> None:
    (secret := bundle.parent / "secret").write_bytes(np.array([4711], np.float32).tobytes())
    edit(bundle, external(str(secret) if place == "absolute" else place))
    with pytest.raises(GemelError) as caught:
        run(bundle)
    assert "a.onnx" in str(caught.value) and "\n" not in str(caught.value) and "4711" not in str(caught.value)


def test_weights_behind_a_link(bundle: Path) -> None:
    (secret := bundle.parent / "secret").write_bytes(np.array([4711], np.float32).tobytes())
    (bundle / "more.bin").symlink_to(secret)
    edit(bundle, external("more.bin"))
    with pytest.raises(GemelError, match=r"a\.onnx"):
        run(bundle)


def test_weights_of_the_bundles_own_file_are_read_or_refused(bundle: Path) -> None:
    edit(bundle, external("weights.bin"))
    run_or_refuse(bundle)


def test_graphs_inside_graphs(bundle: Path) -> None:
    """Each of eight levels holds the next one twice; ONNX Runtime may leave out what no output needs."""
    port = helper.make_tensor_value_info("y", TensorProto.BOOL, None)
    body = helper.make_graph([helper.make_node("Identity", ["flag"], ["y"])], "body", [], [port])
    for _ in range(8):
        node = helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
        body = helper.make_graph([node], "body", [], [port])

    def change(graph: ModelProto) -> None:
        graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
        node = helper.make_node("If", ["flag"], ["unused"], then_branch=body, else_branch=body)
        append(graph, node, helper.make_node("Identity", ["before"], ["logits"]))

    edit(bundle, change)
    run_or_refuse(bundle)


def test_an_unknown_operator(bundle: Path) -> None:
    edit(bundle, lambda graph: append(graph, helper.make_node("Evil", ["before"], ["logits"], domain="com.evil")))
    with pytest.raises(GemelError, match=r"a\.onnx") as caught:
        run(bundle)
    assert "\n" not in str(caught.value)


def test_an_operator_without_a_name(bundle: Path) -> None:
    def change(graph: ModelProto) -> None:
        graph.graph.node[0].op_type = ""

    edit(bundle, change)
    with pytest.raises(GemelError, match=r"a\.onnx") as caught:
        run(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [1 << 40, -4])
def test_a_size_that_cannot_be(length: int, bundle: Path) -> None:
    def change(graph: ModelProto) -> None:
        tensor = graph.graph.initializer.add(name="more", data_type=TensorProto.FLOAT, raw_data=b"\0" * 16)
        tensor.dims.append(length)
        append(graph, helper.make_node("Add", ["before", "more"], ["logits"]))

    edit(bundle, change)
    with pytest.raises(GemelError, match=r"a\.onnx") as caught:
        run(bundle)
    assert "\n" not in str(caught.value)


def test_a_loop_without_an_end(bundle: Path) -> None:
    def change(graph: ModelProto) -> None:
        flag, value = helper.make_tensor_value_info, TensorProto.BOOL
        ports = [flag("step", TensorProto.INT64, []), flag("go", value, []), flag("x", TensorProto.FLOAT, None)]
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["x"], ["y"])],
            "body",
            ports,
            [flag("go_on", value, []), flag("y", TensorProto.FLOAT, None)],
        )
        graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "begin"))
        graph.graph.initializer.append(numpy_helper.from_array(np.array(1 << 62), "times"))
        append(graph, helper.make_node("Loop", ["times", "begin", "before"], ["logits"], body=body))

    edit(bundle, change)
    with pytest.raises(GemelError, match="Loop with a subgraph") as caught:
        run(bundle)
    assert "\n" not in str(caught.value)

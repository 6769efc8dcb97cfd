"""A bundle of two small models that share their convolutions, for tools that start it very often."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from gemel.compiler import compile_workload
from gemel.workload import load_workload

__all__ = ["QUERIES", "make_small_bundle", "write_model", "write_video", "write_workload"]

QUERIES = ("people", "cars", "bikes")
"""Queries of the bundle. The third has the model of the first, on another feed."""
_SIZE = 32
_SEED = {"people": 0, "cars": 1}


def make_small_bundle(folder: Path, *, seconds: int = 2) -> Path:
    """Write models, a video and a workload into a folder, and compile them into ``bundle`` in that folder.

    Args:
        folder: folder to write to, which is created.
        seconds: length of the video, which every feed loops.
    """
    return compile_workload(load_workload(write_workload(folder, seconds=seconds)), folder / "bundle").path


def write_workload(folder: Path, *, seconds: int = 2) -> Path:
    """Write models, a video and a workload into a folder; return the path of the workload."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in _SEED.items():
        write_model(folder / f"{name}.onnx", seed)
    write_video(folder / "street.mp4", seconds)
    feed = {"source": "street.mp4", "fps": 10, "loop": True}
    queries = [_query("people", "yard"), _query("cars", "yard"), {**_query("people", "gate"), "name": "bikes"}]
    document = {"schema_version": "1", "sla": "100ms", "feeds": {"yard": feed, "gate": feed}, "queries": queries}
    path = folder / "workload.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def _query(name: str, feed: str) -> dict[str, object]:
    model = {"onnx": f"{name}.onnx", "input": {"size": [_SIZE, _SIZE]}}
    labels = ["none", "some", "many"]
    return {
        "name": name,
        "feed": feed,
        "task": "classification",
        "labels": labels,
        "activation": "softmax",
        "model": model,
    }


def write_model(path: Path, seed: int) -> None:
    """Write a classifier of three classes. All classifiers have the same convolutions, and a head of their own."""
    shared, own = np.random.default_rng(99), np.random.default_rng(seed)
    weights = {
        "k1": shared.standard_normal((16, 3, 3, 3)) * 0.2,
        "k2": shared.standard_normal((32, 16, 3, 3)) * 0.1,
        "w": own.standard_normal((32, 3)),
        "b": own.standard_normal(3),
    }
    nodes = [
        helper.make_node("Conv", ["image", "k1"], ["c1"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, _SIZE, _SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_video(path: Path, seconds: int) -> None:
    """Write a clip of moving noise with ten frames a second."""
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(10 * seconds):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * index, 1), format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

"""Helpers for tests of backends on a device: the host double with records, and models to run on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from host_device import HostDevice, HostStream
from onnx import TensorProto, helper

from gemel.bundles.program import read_model, split_model
from gemel.bundles.reader import MANIFEST

__all__ = ["IMAGES", "Device", "add_stage", "run"]

IMAGES = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)


class Device(HostDevice):
    """Host double that finds streams by their handles, as CUDA does, and records the bytes of every upload."""

    target = "sm99"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.streams: dict[int, HostStream] = {}
        self.uploads: list[int] = []

    def stream(self) -> HostStream:
        stream = super().stream()
        self.streams[stream.handle] = stream
        return stream

    def upload(self, target: int, source: Any, stream: Any) -> None:
        self.uploads.append(source.nbytes)
        super().upload(target, source, stream)


def add_stage(bundle: Path) -> None:
    """Give model ``a`` a second stage that has no weights: ``y = sin(x)``."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Sin", ["x"], ["y"])], "wave", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data = model.SerializeToString()
    (bundle / "wave.onnx").write_bytes(data)
    program = split_model(read_model(data)).id
    path = bundle / MANIFEST
    document = json.loads(path.read_text())
    x, y = ({"name": name, "dtype": "float32", "shape": ["rows", 4]} for name in "xy")
    stage = {"file": "wave.onnx", "program": program, "inputs": [x], "outputs": [y], "weights": []}
    document["models"]["a"]["stages"]["wave"] = stage
    document["programs"][program] = {"models": ["a"], "inputs": 0}
    document["files"]["wave.onnx"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(document))


def run(backend: Any, model: str, images: Any = IMAGES[:1]) -> Any:
    """Swap a model in, run it on images, release it, and return its logits."""
    backend.activate(model)
    try:
        return backend.run(model, "main", {"image": images})["logits"]
    finally:
        backend.release(model)

"""Facts that an ONNX file tells about itself: ports and metadata, from which ``gemel init`` drafts a query."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ...errors import ModelError, first_line

__all__ = ["OnnxFacts", "OnnxPort", "read_facts"]

_MOST_METADATA = 1 << 20
"""Characters of one metadata entry that are read as a Python literal."""
_MOST_SIDE = 16384
"""Pixels of a side above which a size in metadata is not believed."""
_ULTRALYTICS = {
    "detect": "detection", "segment": "segmentation", "pose": "pose", "classify": "classification", "obb": "raw",
}  # fmt: skip
"""Task as Ultralytics calls it -> task of a query."""
_VECTORS = ("embed", "feat", "vector", "descriptor")
"""Parts of output names that tell an embedding from class scores."""


@dataclass(frozen=True)
class OnnxPort:
    """Input or output of an ONNX file."""

    name: str
    shape: tuple[int | str, ...]
    """Axes; text stands for an axis that the file leaves open."""

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class OnnxFacts:
    """Facts about an ONNX file that are known without running it."""

    inputs: tuple[OnnxPort, ...]
    outputs: tuple[OnnxPort, ...]
    task: str
    reason: str
    """Reason for the task."""
    labels: tuple[str, ...] = ()
    """Names of classes in the metadata; empty if there are none."""
    size: tuple[int, int] | None = None
    """Height and width that a query must set, because the file leaves them open; None if the file fixes them."""
    size_reason: str = ""


def read_facts(path: Path) -> OnnxFacts:
    """Read the ports and the metadata of an ONNX file; weights in other files are not opened.

    Raises:
        ModelError: the file is not ONNX.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf has its own errors, which do not derive from one class
        raise ModelError(f"{path}: not a valid ONNX file: {first_line(error)}") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_port(port) for port in model.graph.input if port.name not in weights)
    outputs = tuple(_port(port) for port in model.graph.output)
    if not inputs or not outputs:
        raise ModelError(f"{path}: has no input, or no output")
    task, reason = _task(metadata, inputs, outputs)
    size, why = _size(metadata, inputs[0], task)
    return OnnxFacts(inputs, outputs, task, reason, _labels(metadata), size, why)


def _port(port: Any) -> OnnxPort:
    dims = port.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?" for dim in dims)
    return OnnxPort(port.name, shape)


def _literal(text: str | None) -> Any:
    """Return a Python literal that metadata holds; None if it holds something else."""
    if text is None or len(text) > _MOST_METADATA:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _labels(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of classes that Ultralytics wrote; empty if they are not numbered from 0 without a gap."""
    names = _literal(metadata.get("names"))
    if isinstance(names, dict) and list(names) == list(range(len(names))):
        names = list(names.values())
    return tuple(str(name) for name in names) if isinstance(names, list | tuple) else ()


def _task(metadata: Mapping[str, str], inputs: tuple[OnnxPort, ...], outputs: tuple[OnnxPort, ...]) -> tuple[str, str]:
    """Return the most likely task of a file, and why."""
    if (named := metadata.get("task", "")) in _ULTRALYTICS:
        return _ULTRALYTICS[named], f"the file says {named}"
    if "character" in metadata:
        return "ocr", "the file has an alphabet"
    first, shape = outputs[0], outputs[0].shape
    if len(outputs) > 1:
        return "detection", f"a guess: the file has {len(outputs)} outputs"
    if any(part in first.name.lower() for part in _VECTORS):
        return "embedding", f"a guess from the output's name, {first.name}"
    if len(shape) == 2:
        return "classification", "a guess: one output [N, classes]; or embedding"
    if len(shape) == 3:
        return "detection", "a guess: one output with three axes; or ocr, raw"
    if len(shape) == 4:
        wide = isinstance(shape[1], int) and shape[1] > 256
        kind = ("embedding", "segmentation") if wide else ("segmentation", "embedding")
        return kind[0], f"a guess: one output [N, C, h, w]; or {kind[1]}"
    return "raw", "the outputs are unknown; raw reports them as they are"


def _size(metadata: Mapping[str, str], port: OnnxPort, task: str) -> tuple[tuple[int, int] | None, str]:
    """Return the size that a query must set and why; None if the file fixes it."""
    shape = port.shape
    last = len(shape) == 4 and shape[-1] in (1, 3) and shape[1] not in (1, 3)
    sides = shape[1:3] if last else shape[2:4]
    if len(shape) != 4 or all(isinstance(side, int) for side in sides):
        return None, ""
    said = _literal(metadata.get("imgsz"))
    if isinstance(said, list | tuple) and len(said) == 2 and all(isinstance(side, int) for side in said):
        height, width = said
        if 0 < height <= _MOST_SIDE and 0 < width <= _MOST_SIDE:
            return (height, width), "imgsz in the file; the file leaves the size open"
    usual = {"classification": (224, 224), "embedding": (224, 224), "segmentation": (512, 512), "ocr": (48, 320)}
    height, width = (
        side if isinstance(side, int) else guess for side, guess in zip(sides, usual.get(task, (640, 640)), strict=True)
    )
    return (height, width), "a guess: the file leaves the size open"

"""Facts about an ONNX file from which ``gemel init`` drafts a query: ports, task, classes and input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ...bundles.decode_specs import ClassificationDecode, SegmentationDecode
from ...bundles.manifest import InputSpec
from ...errors import ModelError
from ...workload.document.schema import Input
from ..lowering.onnx_file import open_onnx
from ..lowering.onnx_source import OnnxSource, read_onnx
from ..recognition import FileMetadata, read_metadata

__all__ = ["OnnxFacts", "read_facts"]

_USUAL_SIZE = {"classification": (224, 224), "embedding": (224, 224), "segmentation": (512, 512), "ocr": (48, 320)}
"""Task -> height and width of the input that is guessed where an ONNX file leaves the size open."""
_OTHER_SIZE = (640, 640)
"""Height and width of the input that is guessed for tasks without a usual size, where an ONNX file leaves it open."""
_VECTORS = ("embed", "feat", "vector", "descriptor")
"""Words in an output's name that tell an embedding from class scores."""
_WIDE = 256
"""Maximum number of channels of segmentation scores; a feature map with more channels is taken for an embedding."""


@dataclass(frozen=True)
class OnnxFacts:
    """Facts about the model in an ONNX file, from which a query is drafted: ports, task, classes and input."""

    ports: str
    """Names and shapes of the ONNX file's inputs and outputs, as text."""
    task: str
    reason: str
    """Reason why the query's task was chosen, for a comment in the drafted workload.yaml."""
    labels: tuple[str, ...] = ()
    """Class names in the ONNX file's metadata; empty if there are none."""
    size: tuple[int, int] | None = None
    """Input height and width that a query must set because the ONNX file leaves them open; None if it fixes them."""
    size_reason: str = ""
    input: InputSpec | None = None
    """Input that the compiler would give the ONNX file's model; None if the compiler would refuse the file."""
    refusal: str | None = None
    """Message with which the compiler would refuse the ONNX file; None if the compiler takes the file."""


def read_facts(path: Path) -> OnnxFacts:
    """Read an ONNX file and run it once, to find the task whose decoder reads its outputs.

    Raises:
        ModelError: the file is not ONNX, or has no input or no output.
    """
    model = open_onnx(path)
    metadata = read_metadata(model.metadata_props)
    inputs, outputs = ("; ".join(map(_describe, ports)) for ports in (model.graph.inputs, model.graph.outputs))
    ports = f"input {inputs}; output {outputs}"
    tried: list[OnnxFacts] = []
    for task, reason in _tasks(model, metadata):
        labels = metadata.class_names(task) or ()
        size, why = _size(model, metadata, task)
        try:
            source = read_onnx(path, task, Input(size=size))
        except ModelError as error:
            reason = reason or "a guess: gemel-compile will not take the file"
            tried.append(OnnxFacts(ports, task, reason, labels, size, why, refusal=str(error)))
        else:
            reason = _choice(source, task, reason) or reason or _meaning(source)
            return OnnxFacts(ports, task, reason, labels, size, why, source.input)
        if task == metadata.task:
            break
    return tried[0]


def _tasks(model: ir.Model, metadata: FileMetadata) -> Iterator[tuple[str, str]]:
    """Yield the tasks that an ONNX file may be for, the most likely first, each with a reason if one is known."""
    if metadata.task == "oriented detection":
        yield "raw", "the file says oriented boxes, which have no decoder"
    elif metadata.task is not None:
        yield metadata.task, f"the file says {metadata.task}"
    if metadata.characters is not None and metadata.names is None:
        yield "ocr", "the file has an alphabet"
    first = model.graph.outputs[0]
    if any(part in (first.name or "").lower() for part in _VECTORS):
        yield "embedding", f"a guess from the output's name, {first.name}"
    yield "detection", ""
    shape = first.shape
    if shape is not None and len(shape) == 4 and isinstance(shape[1], int) and shape[1] > _WIDE:
        yield "embedding", "a guess: one output [N, C, h, w] with many channels; or segmentation"
    yield "segmentation", "a guess: one output [N, C, h, w]; or embedding"
    yield "classification", "a guess: one output [N, classes]; or embedding"
    yield "embedding", "a guess: one output of floats"
    yield "raw", "no decoder reads these outputs; raw reports them as they are"


def _choice(source: OnnxSource, task: str, reason: str) -> str | None:
    """Return a longer reason for a guessed task if it ignores some outputs, or if the output is a single number.

    The reason is a comment in the drafted workload. None if the given ``reason`` is enough.
    """
    if not reason.startswith("a guess: one output"):
        return None
    decode, outputs = source.decode, source.model.graph.outputs
    read = decode.output if isinstance(decode, SegmentationDecode) else outputs[0].name
    others = f"{_plain_name(read)} is read, of {len(outputs)} outputs; model.outputs names another"
    if isinstance(decode, ClassificationDecode) and decode.classes == 1 and decode.activation == "sigmoid":
        return "a guess: one number as logit of yes; or raw, if it is an age" + (
            f"; {others}" if len(outputs) > 1 else " or another quantity"
        )
    return f"a guess: {others}; or raw" if len(outputs) > 1 else None


def _plain_name(name: str | None) -> str:
    return (name or "?")[:40]


def _meaning(source: OnnxSource) -> str:
    """Return the reason for a query's task that was found from the outputs of an ONNX file."""
    return f"the outputs are those of a {source.decode.kind} model"


def _describe(port: ir.Value) -> str:
    dims = port.shape if port.shape is not None else ()
    shape = ", ".join(str(dim) if isinstance(dim, int) else (dim.value or "?") for dim in dims)
    return f"{port.name} [{shape}]"


def _size(model: ir.Model, metadata: FileMetadata, task: str) -> tuple[tuple[int, int] | None, str]:
    """Return the input size that a query must set, and the reason; None if the ONNX file fixes the size."""
    shape = list(model.graph.inputs[0].shape or ()) if model.graph.inputs else []
    if len(shape) != 4:
        return None, ""
    is_last = shape[-1] in (1, 3) and shape[1] not in (1, 3)
    sides = shape[1:3] if is_last else shape[2:4]
    if all(isinstance(side, int) for side in sides):
        return None, ""
    if metadata.size is not None:
        return metadata.size, "imgsz in the file; the file leaves the size open"
    guess = _USUAL_SIZE.get(task, _OTHER_SIZE)
    height, width = (side if isinstance(side, int) else usual for side, usual in zip(sides, guess, strict=True))
    return (height, width), "a guess: the file leaves the size open"

"""Reading of models that come as ONNX files: set the input size, free the batch, and find the outputs' decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from ...bundles.decode_specs import DecodeSpec
from ...bundles.manifest import InputSpec
from ...errors import ModelError
from ...workload.document.schema import Input
from ..passes import FoldConstants
from ..recognition import Evidence, FileMetadata, MeasuredOutput, OutputWords, read_metadata, recognise_outputs
from ..recognition.hugging_face import read_files_beside
from .graph_ends import class_count, last_activation
from .onnx_file import open_onnx, refuse_operators, weight_names
from .onnx_limits import check_value_sizes, quiet_inference
from .onnx_ports import ImagePort, adapt_input, base_input, find_image_port, noise_for, widen_outputs
from .onnx_run import run_file, run_on_port

__all__ = ["OnnxSource", "read_onnx", "run_file"]

_TEXT_SIZE = (48, 320)
"""Height and width in pixels of a text recogniser's input where the file leaves them open: PaddleOCR's."""
_OPEN_ENDED = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""ONNX operators whose number of results depends on the content of the image."""


@dataclass(frozen=True)
class OnnxSource:
    """Model that was read from an ONNX file: its graph, input, decoder, class names and metadata."""

    model: ir.Model
    decode: DecodeSpec
    input: InputSpec
    weights: frozenset[str]
    """Names of the initializers of the model's ONNX graph that are weights."""
    labels: tuple[str, ...] | None = None
    """Names of the classes in the ONNX file's metadata; None if there are none."""
    metadata: FileMetadata = field(default_factory=FileMetadata)


def read_onnx(path: Path, task: str, wanted: Input, words: OutputWords = OutputWords()) -> OnnxSource:  # noqa: B008
    """Read the model of a query from an ONNX file, and find the decoder for its outputs by a run on noise.

    Args:
        path: file to read; files with its weights, if any, lie beside it.
        task: task of the query.
        wanted: input that the workload asks for; ``size`` is needed if the file leaves the size open.
        words: what the workload says about the outputs.

    Raises:
        ModelError: the file is not ONNX, its input is not one image, an operator cannot be compiled, a value would be
            too large, or no decoder of the task reads the outputs.
    """
    model = open_onnx(path)
    beside = read_files_beside(path) if any(each.name == "pixel_values" for each in model.graph.inputs) else None
    metadata = read_metadata({**(beside.entries if beside is not None else {}), **model.metadata_props})
    usual = beside.input.size if beside is not None else _TEXT_SIZE if task == "ocr" else None
    port = find_image_port(model, path, wanted, metadata.size or usual)
    weights = weight_names(model)
    _choose_outputs(model, path, words.outputs)
    adapt_input(model, port)
    _infer_shapes(model)
    check_value_sizes(model, str(path))
    if any(each.type == ir.AttributeType.GRAPH for node in model.graph for each in node.attributes.values()):
        _decide_branches(model, port, weights)
    refuse_operators(model, str(path))
    wanted_outputs = [output.name or "" for output in model.graph.outputs]
    outputs = run_on_port(path, port, noise_for(port), wanted_outputs)
    meaning = recognise_outputs(
        Evidence(
            where=str(path),
            task=task,
            outputs=tuple(
                MeasuredOutput(each.name or "", outputs[each.name or ""], last_activation(each), class_count(each))
                for each in model.graph.outputs
            ),
            size=port.size,
            metadata=metadata,
            decode=words.decode,
            activation=words.activation or (beside.activation(task) if beside is not None else None),
            labels=words.labels,
        )
    )
    _set_output_shapes(model, port, outputs)
    if meaning.first is not None:
        _put_first(model, meaning.first)
    if task != "raw":
        widen_outputs(model)
    known = {**base_input(port).model_dump(), **_fitting(metadata.input, port), **_fitting(meaning.input, port)}
    if beside is not None:
        known |= _fitting(beside.input.model_dump(), port)
    given = wanted.model_dump(exclude_none=True, exclude={"size"})
    spec = InputSpec.model_validate({**known, "size": port.size, **given})
    names = meaning.labels or metadata.class_names(task)
    is_named = names is not None and getattr(meaning.decode, "classes", None) == len(names)
    return OnnxSource(model, meaning.decode, spec, weights, names if is_named else None, metadata)


def _choose_outputs(model: ir.Model, path: Path, wanted: Sequence[str] | None) -> None:
    """Reduce the outputs of a graph to those that a workload names, in the workload's order; None keeps all.

    Raises:
        ModelError: an output does not exist.
    """
    if wanted is None:
        return
    graph = model.graph
    by_name = {output.name or "": output for output in graph.outputs}
    positions = {str(index): output for index, output in enumerate(graph.outputs)}
    if unknown := [name for name in wanted if name not in by_name and name not in positions]:
        raise ModelError(f"{path}: outputs: {unknown[0]} is no output of the file; it has {', '.join(by_name)}")
    kept = list(dict.fromkeys(by_name.get(name) or positions[name] for name in wanted))
    graph.outputs[:] = kept
    RemoveUnusedNodesPass()(model)


def _infer_shapes(model: ir.Model) -> None:
    """Infer the shapes of all values of a graph again, after the size of its input was set."""
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    with quiet_inference():
        ShapeInferencePass()(model)


def _decide_branches(model: ir.Model, port: ImagePort, weights: frozenset[str]) -> None:
    """Replace each If node of a graph whose condition depends on shapes alone by the branch that is taken.

    The batch is set to 1, because conditions are often computed from whole shapes.
    """
    model.graph.inputs[0].shape = ir.Shape([1, port.channels, *port.size])
    _infer_shapes(model)
    FoldConstants(weights)(model)
    RemoveUnusedNodesPass()(model)


def _set_output_shapes(model: ir.Model, port: ImagePort, outputs: dict[str, NDArray[Any]]) -> None:
    """Set the shapes of a graph's outputs to those that a run measured, because inference fails on computed shapes.

    A size that depends on the content of the image stays free.
    """
    open_ended = any(node.op_type in _OPEN_ENDED for node in model.graph)
    for output in model.graph.outputs:
        inferred = list(output.shape) if output.shape is not None else []
        measured = outputs[output.name or ""].shape
        sizes: list[int | ir.SymbolicDim] = list(measured)
        for axis, size in enumerate(measured):
            is_known = len(inferred) == len(measured) and isinstance(inferred[axis], int)
            if (open_ended and not is_known) or size == 0:
                sizes[axis] = ir.SymbolicDim(f"{output.name}.{axis}")
        if "N" in port.layout and measured[:1] == (1,):
            sizes[0] = ir.SymbolicDim("batch")
        output.shape = ir.Shape(sizes)


def _put_first(model: ir.Model, name: str) -> None:
    """Move an output of a graph to the front, because the model's decoder reads only the first output."""
    outputs = model.graph.outputs
    outputs[:] = sorted(outputs, key=lambda output: output.name != name)


def _fitting(known: Any, port: ImagePort) -> dict[str, Any]:
    """Return the input settings that a family of models expects, without those that an ONNX file's input contradicts.

    A file that takes uint8 normalises by itself, and gray images have no colour order and one mean.
    """
    left_out = {"scale", "mean", "std", "pad"} if port.dtype == ir.DataType.UINT8 else set()
    if port.channels == 1:
        left_out |= {"color"}
    return {name: value for name, value in known.items() if name not in left_out}

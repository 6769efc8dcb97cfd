"""Inputs of ONNX files: how a file takes images, and nodes that make it take float32 images in the layout NCHW."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...bundles.manifest import InputSpec
from ...errors import ModelError
from ...workload.document.schema import Input
from ..passes.edit import replace_constant
from .onnx_limits import check_pixels

__all__ = [
    "ImagePort",
    "adapt_input",
    "base_input",
    "feeds_of",
    "find_image_port",
    "noise_for",
    "widen_outputs",
]

_Array = NDArray[Any]

_TYPES = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16, ir.DataType.UINT8: np.uint8}
"""ONNX element types in which a file may take images -> NumPy's types."""
_CONSTANTS: dict[str, Callable[[tuple[int, int]], _Array]] = {
    # The exports of RT-DETR and D-FINE scale boxes by (width, height); PaddleDetection's take (height, width).
    **dict.fromkeys(
        ("orig_target_sizes", "orig_size", "orig_sizes", "orig_image_size"), lambda size: np.array(size[::-1])
    ),
    **dict.fromkeys(("im_shape", "image_shape", "img_shape", "target_sizes"), lambda size: np.array(size)),
    **dict.fromkeys(("scale_factor", "im_scale"), lambda size: np.ones(2)),
    "pixel_mask": lambda size: np.ones(size),
}
"""Name of an ONNX input that is not the image -> function that returns its value, called with (height, width)."""


@dataclass(frozen=True)
class ImagePort:
    """Input of an ONNX file that takes images: layout, type and size, and the values for the file's other inputs."""

    name: str
    layout: Literal["NCHW", "NHWC", "CHW", "HWC"]
    dtype: ir.DataType
    channels: int
    size: tuple[int, int]
    """Height and width in pixels of the images that the ONNX file takes."""
    constants: Mapping[str, _Array]
    """Values for the ONNX file's inputs that are not the image, by input name. They depend on the image size alone."""

    @property
    def color(self) -> Literal["rgb", "gray"]:
        """Colour order of the images that the ONNX file takes, unless the workload says otherwise."""
        return "gray" if self.channels == 1 else "rgb"


def find_image_port(model: ir.Model, path: Path, wanted: Input, default: tuple[int, int] | None = None) -> ImagePort:
    """Find the input of an ONNX file that takes images, and return its layout, element type and size.

    Args:
        model: the file's graph.
        path: file, for messages.
        wanted: input that the workload asks for.
        default: height and width if neither the workload nor the file's input says.

    Raises:
        ModelError: no input takes one image, the size is open or too large, or another input is not known.
    """
    inputs = list(model.graph.inputs)
    layouts = {port: _layout(port) for port in inputs}
    images = [
        port for port in inputs if layouts[port] is not None and port.dtype in _TYPES and port.name not in _CONSTANTS
    ]
    if len(images) != 1:
        found = ", ".join(f"{port.name} {port.dtype} {port.shape}" for port in inputs)
        raise ModelError(
            f"{path}: one image is expected as input, [N, C, H, W] or [N, H, W, C] of float32, float16 or uint8 with 1"
            f" or 3 channels; the file has: {found}"
        )
    (port,) = images
    layout, dims = layouts[port], list(port.shape or ())
    assert layout is not None and port.dtype is not None and port.name is not None
    channels = dims[layout.index("C")]
    channels = channels if isinstance(channels, int) else 1 if wanted.color == "gray" else 3
    if wanted.color is not None and (channels == 1) != (wanted.color == "gray"):
        raise ModelError(f"{path}: input has {channels} channels, model.input.color is {wanted.color}")
    declared = (dims[layout.index("H")], dims[layout.index("W")])
    height, width = wanted.size or declared
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        if default is None:
            raise ModelError(f"{path}: the file leaves the input size open; set model.input.size: [height, width]")
        height, width = (
            side if isinstance(side, int) and side > 0 else usual for side, usual in zip(declared, default, strict=True)
        )
    check_pixels((height, width), str(path))
    constants = {other.name or "": _constant(other, (height, width), path) for other in inputs if other is not port}
    return ImagePort(port.name, layout, port.dtype, channels, (height, width), constants)


def feeds_of(port: ImagePort, image: NDArray[np.float32]) -> dict[str, _Array]:
    """Return a value for every input of an ONNX file, for a batch of images ``[N, C, height, width]``.

    Args:
        port: input of the file that takes images.
        image: images as the runtime prepares them; for a file that takes uint8, values from 0 to 255.
    """
    array: _Array = image.astype(_TYPES[port.dtype])
    if port.layout.endswith("HWC"):
        array = array.transpose(0, 2, 3, 1)
    if len(port.layout) == 3:
        array = array[0]
    return {port.name: np.ascontiguousarray(array), **port.constants}


def adapt_input(model: ir.Model, port: ImagePort) -> None:
    """Change the inputs of a graph, in place, to float32 images ``[batch, C, height, width]`` and nothing else.

    Nodes that convert and transpose the image are put in front; ONNX Runtime removes two transposes that cancel. The
    graph's other inputs become constants. The image input keeps its name.

    Args:
        model: the file's graph.
        port: result of :func:`find_image_port`.
    """
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in port.constants]:
        graph.inputs.remove(value)
        replace_constant(value, port.constants[value.name or ""])
        graph.register_initializer(value)
    (own,) = graph.inputs
    batch: int | ir.SymbolicDim = ir.SymbolicDim("batch") if "N" in port.layout else 1
    planes = ir.Shape([batch, port.channels, *port.size])
    if port.layout == "NCHW" and port.dtype == ir.DataType.FLOAT:
        own.shape = planes
        return
    image = ir.Value(name=port.name, type=ir.TensorType(ir.DataType.FLOAT), shape=planes)
    own.name = f"{port.name}.file"
    nodes = []
    last = image
    if port.dtype != ir.DataType.FLOAT:
        nodes.append(ir.node("Cast", [last], attributes={"to": int(port.dtype)}))
        last = nodes[-1].outputs[0]
    if port.layout.endswith("HWC"):
        nodes.append(ir.node("Transpose", [last], attributes={"perm": [0, 2, 3, 1]}))
        last = nodes[-1].outputs[0]
    if "N" not in port.layout:
        # A Reshape, because the axes of a Squeeze are an attribute in old opsets and an input in new ones.
        shape = ir.Value(name=f"{port.name}.shape")
        sides = {"C": port.channels, "H": port.size[0], "W": port.size[1]}
        replace_constant(shape, np.array([sides[axis] for axis in port.layout], np.int64))
        graph.register_initializer(shape)
        nodes.append(ir.node("Reshape", [last, shape]))
        last = nodes[-1].outputs[0]
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"{port.name}.{index}"
    ir.convenience.replace_all_uses_with(own, last)
    graph.inputs[0] = image
    graph.insert_before(graph[0], nodes)


def widen_outputs(model: ir.Model) -> None:
    """Convert a graph's float16, bfloat16 and float64 outputs to float32, in place; outputs keep their names."""
    graph = model.graph
    for index, value in enumerate(graph.outputs):
        if value.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
            continue
        name, cast = value.name, ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)})
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
        value.name, cast.outputs[0].name = f"{name}.file", name


def noise_for(port: ImagePort) -> NDArray[np.float32]:
    """Return one image of seeded noise for an ONNX file, ``[1, C, height, width]``: 0 to 1, or 0 to 255 for uint8."""
    noise = np.random.default_rng(0).random((1, port.channels, *port.size), np.float32)
    return noise if port.dtype != ir.DataType.UINT8 else np.floor(noise * 256)


def base_input(port: ImagePort) -> InputSpec:
    """Return an ONNX file's input with the size, colour and pixel scale that hold unless its family has others."""
    scale = 1.0 if port.dtype == ir.DataType.UINT8 else 1 / 255
    return InputSpec(size=port.size, color=port.color, scale=scale)


def _layout(port: ir.Value) -> Literal["NCHW", "NHWC", "CHW", "HWC"] | None:
    """Return the order of the axes of an ONNX input that takes images; None for an input that takes no images.

    Where the shape leaves the channels open, the first convolution or transpose that reads the input tells them.
    """
    dims = list(port.shape or ())
    if len(dims) == 4:
        if dims[1] in (1, 3):
            return "NCHW"
        if dims[3] in (1, 3):
            return "NHWC"
        return _layout_of_readers(port) if not isinstance(dims[1], int) and not isinstance(dims[3], int) else None
    if len(dims) == 3 and port.dtype in (ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.FLOAT16):
        if dims[0] in (1, 3):
            return "CHW"
        return "HWC" if dims[2] in (1, 3) else None
    return None


def _layout_of_readers(port: ir.Value) -> Literal["NCHW", "NHWC"] | None:
    """Return the layout that the first convolution or transpose which reads an ONNX input expects."""
    for use in port.uses():
        kernel = use.node.inputs[1] if len(use.node.inputs) > 1 else None
        if use.node.op_type == "Conv" and kernel is not None and kernel.shape is not None:
            return "NCHW" if kernel.shape[1] in (1, 3) else None
        if use.node.op_type == "Transpose" and list(use.node.attributes["perm"].as_ints()) == [0, 3, 1, 2]:
            return "NHWC"
    return "NCHW"


def _constant(port: ir.Value, size: tuple[int, int], path: Path) -> _Array:
    """Return the value for an ONNX input that is not the image, such as the image's size, by the input's name.

    Raises:
        ModelError: the input's name is not known.
    """
    make = _CONSTANTS.get(port.name or "")
    if make is None or port.dtype is None:
        raise ModelError(
            f"{path}: input {port.name} {port.dtype} {port.shape} is not an image; write its value into the file as an"
            f" initializer. Known are {', '.join(_CONSTANTS)}"
        )
    values = make(size).astype(port.dtype.numpy())
    rank = len(port.shape) if port.shape is not None else values.ndim + 1
    return values.reshape((1,) * (rank - values.ndim) + values.shape)

"""Limits on the input size and the memory of a model, checked before the memory is taken."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator

import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from ...bundles.manifest import MOST_PIXELS
from ...errors import ModelError
from ...memory_limit import limited_memory
from ..passes.clean import may_fold

__all__ = ["MOST_PIXELS", "MOST_VALUE_BYTES", "check_pixels", "check_value_sizes", "limited_memory", "quiet_inference"]

MOST_VALUE_BYTES = 2 << 30
"""Maximum size in bytes of one value (input, output or intermediate tensor) of a graph, for one image."""
_SMALL = 1024
"""Maximum number of elements of a constant to fold while shapes are inferred: enough for shapes themselves."""


def check_pixels(size: tuple[int, int], where: str) -> None:
    """Refuse a model's input size that is larger than the frames of any camera.

    Args:
        size: height and width in pixels.
        where: query or file, for the message.

    Raises:
        ModelError: the size has more than :data:`MOST_PIXELS` pixels.
    """
    if size[0] * size[1] > MOST_PIXELS:
        raise ModelError(
            f"{where}: input.size {list(size)} has {size[0] * size[1] / 1e6:,.0f} million pixels; at most"
            f" {MOST_PIXELS / 1e6:.1f} million are allowed (8K)"
        )


@contextlib.contextmanager
def quiet_inference() -> Iterator[None]:
    """Silence the traceback that shape inference logs for a graph that it cannot follow, such as one with a Loop.

    The graph's shapes then stay unknown. Whether gemel takes the graph is decided, and said, elsewhere.
    """
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_value_sizes(model: ir.Model, where: str) -> None:
    """Refuse a graph with an intermediate tensor that is too large, found from shapes without running the graph.

    Shapes that depend on the content of the image are not checked.

    Args:
        model: graph with the input size set; not changed. Free dimensions count as 1.
        where: file, for the message.

    Raises:
        ModelError: an operator's output has more than :data:`MOST_VALUE_BYTES`; the message names the operator.
    """
    copy = model.clone()
    for port in copy.graph.inputs:
        port.shape = ir.Shape([size if isinstance(size, int) else 1 for size in port.shape or ()])
    for node in copy.graph:
        node.name = node.name or node.outputs[0].name
    with contextlib.suppress(RuntimeError):  # a node that cannot be folded; ONNX Runtime says more about it
        fold_constants(
            copy,
            onnx_shape_inference=True,
            input_size_limit=_SMALL,
            output_size_limit=_SMALL,
            should_fold=lambda node: None if may_fold(node, _SMALL) else False,
        )
    for node in copy.graph:
        for output in node.outputs:
            sizes = [size if isinstance(size, int) else 1 for size in output.shape or ()]
            width = output.dtype.itemsize if output.dtype is not None else 4
            if math.prod(sizes) * width > MOST_VALUE_BYTES:
                raise ModelError(
                    f"{where}: operator {node.op_type} ({node.name}) makes a value of shape {sizes},"
                    f" {math.prod(sizes) * width / 1e9:,.1f} GB for one image; at most {MOST_VALUE_BYTES / 1e9:.1f} GB"
                    " are allowed"
                )

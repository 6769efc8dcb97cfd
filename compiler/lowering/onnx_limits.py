"""Limits on what a model may ask for, checked before memory is taken."""

from __future__ import annotations

import contextlib
import math
import resource
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from ...errors import ModelError
from ..passes.clean import may_fold

__all__ = ["MOST_PIXELS", "MOST_VALUE_BYTES", "check_pixels", "check_value_sizes", "limited_memory"]

MOST_PIXELS = 7680 * 4320
"""Pixels that a model's input may have: those of an 8K frame."""
MOST_VALUE_BYTES = 2 << 30
"""Bytes that one value of a graph may have for one image."""
_MOST_RUN_BYTES = 8 << 30
"""Bytes of memory that one run of a file may take beside its weights."""
_ONE_AT_A_TIME = Lock()
"""Lock of the process's memory limit."""
_SMALL = 1024
"""Elements of constants that are folded to find shapes: shapes themselves, and what they are computed from."""


def check_pixels(size: tuple[int, int], where: str) -> None:
    """Refuse an input size that no camera has.

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


def check_value_sizes(model: ir.Model, where: str) -> None:
    """Refuse a graph with a value that is too large, found from shapes alone.

    Shapes that depend on the content of the image are not known here.

    Args:
        model: graph with the input size set; not changed. Free dimensions count as 1.
        where: file, for the message.

    Raises:
        ModelError: naming the operator whose output has more than :data:`MOST_VALUE_BYTES`.
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


@contextlib.contextmanager
def limited_memory(weights: int) -> Iterator[None]:
    """Limit the memory that this process may take more in a block, so that a hostile graph fails and not the machine.

    Allocations beyond the limit fail. The limit holds for the whole process, so one thread at a time enters the block.
    Does nothing where the system has no /proc.

    Args:
        weights: bytes of the weights that are opened in the block.
    """
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    with _ONE_AT_A_TIME:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        taken = int(status.read_text().split()[0]) * resource.getpagesize()
        # Weights may be held three times: in the serialised graph, parsed, and as ONNX Runtime's own copy.
        wanted = taken + _MOST_RUN_BYTES + 3 * weights
        limits = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

"""Search of an ONNX graph's last nodes for an activation or an ArgMax, which the decoder must not apply again."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

__all__ = ["class_count", "last_activation"]

_THROUGH = frozenset(
    {"Cast", "Clip", "Concat", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
"""ONNX operators that may follow an activation, because they only convert, reshape, join or bound scores."""


def last_activation(value: ir.Value) -> Literal["softmax", "sigmoid"] | None:
    """Return the activation (softmax or sigmoid) that a graph applies last to one of its outputs; None without one.

    Nodes that only convert, reshape, join or bound values may follow the activation. A LogSoftmax counts as none: a
    softmax of its output gives the same probabilities as a softmax of its input.
    """
    pending, seen = [value], set()
    while pending:
        node = pending.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "Softmax":
            return "softmax"
        if node.op_type in ("Sigmoid", "HardSigmoid"):
            return "sigmoid"
        if node.op_type in _THROUGH:
            inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
            pending.extend(each for each in inputs if each is not None)
    return None


def class_count(value: ir.Value, through: int = 4) -> int | None:
    """Return the number of classes among which the ArgMax before a graph's output chooses; None if it is not known.

    Args:
        value: output with class numbers.
        through: maximum number of nodes to look at, from the output backwards, the ArgMax included.
    """
    node = value.producer()
    for _ in range(through):
        if node is None or not node.inputs or node.inputs[0] is None:
            return None
        if node.op_type in ("ArgMax", "ArgMin", "TopK"):
            axis = node.attributes.get("axis")
            default = -1 if node.op_type == "TopK" else 0
            shape = list(node.inputs[0].shape or ())
            index = axis.as_int() if axis is not None else default
            size = shape[index] if -len(shape) <= index < len(shape) else None
            return size if isinstance(size, int) else None
        node = node.inputs[0].producer()
    return None

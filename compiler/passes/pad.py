"""Graph pass that moves zero padding into the convolution behind it."""

from __future__ import annotations

import onnx_ir as ir

from .edit import constant

__all__ = ["FusePad"]


class FusePad(ir.passes.InPlacePass):
    """Graph pass that makes a Pad of zeros part of the convolutions that read it.

    Models from TensorFlow have such Pads (SAME padding). ONNX Runtime's own fusion (``Pad_Fusion``) does the same, but
    also for max pooling, where it is wrong (max pooling pads with -inf). It is therefore off when a bundle is baked
    (optimised once for the device's CPU). On TensorRT this pass saves a layer.

    A Pad stays if its amounts are not constant, if a node other than a convolution reads it, or if it pads the batch or
    the channels.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for pad in list(model.graph):
            if pad.op_type != "Pad" or pad.domain or pad.outputs[0].is_graph_output():
                continue
            amounts = _amounts(pad)
            convs = [use.node for use in pad.outputs[0].uses() if use.idx == 0]
            if amounts is None or not convs or len(convs) != len(pad.outputs[0].uses()):
                continue
            if not all(_takes_padding(conv) for conv in convs):
                continue
            for conv in convs:
                own = conv.attributes.get("pads")
                before = list(own.as_ints()) if own is not None else [0] * len(amounts)
                conv.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(before, amounts, strict=True)])
                conv.replace_input_with(0, pad.inputs[0])
            model.graph.remove(pad, safe=True)
            changed = True
        return ir.passes.PassResult(model, changed)


def _amounts(pad: ir.Node) -> list[int] | None:
    """Return a Pad node's spatial padding in the order of Conv's ``pads``: all begins, then all ends.

    None if a convolution cannot pad this way.
    """
    mode = pad.attributes.get("mode")
    values = pad.inputs[1] if len(pad.inputs) > 1 else None
    if (mode is not None and mode.as_string() != "constant") or values is None or values.const_value is None:
        return None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        return None
    fill = pad.inputs[2] if len(pad.inputs) > 2 else None
    if fill is not None and (fill.const_value is None or constant(fill).any()):
        return None
    amounts = [int(value) for value in constant(values)]
    rank = len(amounts) // 2
    outside = amounts[:2] + amounts[rank : rank + 2]
    spatial = amounts[2:rank] + amounts[rank + 2 :]
    return spatial if not any(outside) and min(spatial, default=0) >= 0 else None


def _takes_padding(node: ir.Node) -> bool:
    """Return whether a graph's node is a convolution with explicit padding."""
    automatic = node.attributes.get("auto_pad")
    return node.op_type == "Conv" and not node.domain and (automatic is None or automatic.as_string() == "NOTSET")

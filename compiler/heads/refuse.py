"""Early errors for PyTorch modules that cannot be compiled, on which the exporter would fail with a page of text."""

from __future__ import annotations

from torch import nn

from ...errors import ModelError

__all__ = ["explain_clips", "refuse_quantized"]

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
"""PyTorch packages with layers that hold quantized weights."""
_FLOAT = "FloatFunctional"
"""Class in PyTorch's quantization packages that computes with floats, in models that can be quantized but are not."""


def refuse_quantized(model: nn.Module) -> None:
    """Refuse a module with layers of PyTorch's eager quantization, whose weights no exporter reads.

    Raises:
        ModelError: a layer is quantized; the message names the first.
    """
    for name, layer in model.named_modules():
        if type(layer).__module__.startswith(_QUANTIZED) and type(layer).__name__ != _FLOAT:
            kind = f"{type(layer).__module__}.{type(layer).__name__}"
            raise ModelError(
                f"{type(model).__name__}: layer {name} is quantized ({kind}), which cannot be exported; give the float"
                " model (quantize=False in torchvision) and compile with --precision int8"
            )


def explain_clips(model: nn.Module, error: ModelError) -> None:
    """Raise an error that says that a module takes video clips, if it has three-dimensional convolutions.

    Args:
        model: module that failed on a batch of images.
        error: error that the module failed with.

    Raises:
        ModelError: the module takes clips of several frames.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv3d):
            raise ModelError(
                f"{type(model).__name__} takes clips of several frames, [N, C, T, H, W], as its layer {name} (Conv3d)"
                " shows; a query gets one frame at a time, [N, C, H, W]. Give a model for single images"
            ) from error

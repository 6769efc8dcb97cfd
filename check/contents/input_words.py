"""Description of a model's input (size, colour, normalisation), and which of these settings the workload gave."""

from __future__ import annotations

from typing import Any

from ...bundles.manifest import InputSpec, ModelSpec

__all__ = ["describe_input", "input_figures"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_KEYS = ("size", "color", "scale", "mean", "std", "fit", "pad", "rounding")


def input_figures(model: ModelSpec) -> dict[str, Any]:
    """Return the settings of a model's input as a value that JSON can hold.

    ``layout`` and ``dtype`` are those of the compiled graph. ``given`` lists the keys that the workload set; the others
    are the model's own, or defaults where the model says nothing.
    """
    port = model.stages["main"].inputs[0]
    asked = model.source.get("input") or {}
    return {
        **model.input.model_dump(mode="json"),
        "layout": _layout(port.shape),
        "dtype": port.dtype,
        "given": [key for key in _KEYS if asked.get(key) is not None],
    }


def describe_input(figures: dict[str, Any]) -> str:
    """Return a model's input, as :func:`input_figures` gives it, as a line of text.

    >>> port = {"name": "image", "dtype": "float32", "shape": ["batch", 3, 224, 224]}
    >>> stage = {"file": "a.onnx", "program": "0" * 32, "inputs": [port], "outputs": [], "weights": []}
    >>> model = ModelSpec.model_validate({
    ...     "stages": {"main": stage}, "input": {"size": [224, 224]}, "decode": {"kind": "embedding"},
    ...     "bytes": 0, "segments": [], "source": {"input": {"size": [224, 224]}},
    ... })
    >>> print(describe_input(input_figures(model)).replace("; ", "\\n"))
    224 x 224 (height x width), NCHW float32, rgb, scale 1/255, mean 0, std 1, stretch
    given: size
    the rest: the model's defaults
    """
    spec = InputSpec.model_validate(figures)
    height, width = spec.size
    scale = "1/255" if abs(spec.scale * 255 - 1) < 1e-6 else f"{spec.scale:.6g}"
    mean, std = _numbers(spec.mean), _numbers(spec.std)
    known = " (ImageNet's)" if (spec.mean, spec.std) == _IMAGENET else ""
    pad = f" with {spec.pad:g}" if spec.fit != "stretch" else ""
    pad += f" rounded {spec.rounding}" if spec.fit != "stretch" and spec.rounding != "nearest" else ""
    given = f"given: {', '.join(figures['given'])}; the rest" if figures["given"] else "all"
    return (
        f"{height} x {width} (height x width), {figures['layout']} {figures['dtype']}, {spec.color}, scale {scale},"
        f" mean {mean}, std {std}{known}, {spec.fit}{pad}; {given}: the model's defaults"
    )


def _numbers(values: tuple[float, ...]) -> str:
    """Return the numbers of a mean or standard deviation as text: one number if all channels have the same."""
    return f"{values[0]:.4g}" if len(set(values)) == 1 else f"[{', '.join(f'{value:.4g}' for value in values)}]"


def _layout(shape: tuple[int | str, ...]) -> str:
    """Return the order of the axes of an image input with a shape: NHWC or NCHW.

    NHWC if the last axis has 1 or 3 entries and the second has not.
    """
    last = len(shape) == 4 and shape[-1] in (1, 3) and shape[1] not in (1, 3)
    return "NHWC" if last else "NCHW"

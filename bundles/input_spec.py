"""Entry of the manifest for the preparation of a model's input."""

from __future__ import annotations

from typing import Literal

from .value import Value

__all__ = ["InputSpec"]


class InputSpec(Value):
    """Preprocessing from a frame to a model's input: resize, colour order, ``(pixel * scale - mean) / std``.

    ``fit="stretch"`` resizes to ``size`` and ignores the aspect ratio. ``fit="letterbox"`` keeps the aspect ratio: the
    frame lies at the top left and the rest is ``pad`` (in units of the normalised input). ``fit="letterbox-center"``
    has the frame in the middle, as Ultralytics does; a row or column that is left over is at the bottom or right.
    """

    size: tuple[int, int]
    """Height and width of a model's input in pixels."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1 / 255
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    fit: Literal["stretch", "letterbox", "letterbox-center"] = "stretch"
    pad: float = 0.0
    rounding: Literal["nearest", "up", "down"] = "nearest"
    """Way to round the sides of a letterboxed frame to whole pixels."""

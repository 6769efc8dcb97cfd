"""Preprocessing of frames into inputs of models, and mapping boxes from input pixels back to the frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..bundles.manifest import InputSpec

__all__ = ["Geometry", "preprocess", "resize"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Position of a resized frame in a model's input. All sizes are (height, width) in pixels."""

    source: tuple[int, int]
    """Size of a frame before resizing: (height, width) in pixels."""
    input: tuple[int, int]
    """Size of a model's input: (height, width) in pixels."""
    valid: tuple[int, int]
    """Size of the area of a model's input that the resized frame covers, (height, width): all of it unless
    letterboxed."""
    offset: tuple[int, int] = (0, 0)
    """Upper left corner of the area that a resized frame covers in a model's input: (rows from the top, columns from
    the left)."""

    @property
    def area(self) -> tuple[int, int, int, int]:
        """Area of the model's input that the frame covers, in input pixels: x1 y1 x2 y2."""
        top, left = self.offset
        return left, top, left + self.valid[1], top + self.valid[0]

    @property
    def covered(self) -> tuple[slice, slice]:
        """Rows and columns of the model's input that the frame covers, as an index of the last two axes."""
        left, top, right, bottom = self.area
        return slice(top, bottom), slice(left, right)

    def to_source(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes ``[K, 4]`` (x1 y1 x2 y2) from input pixels to pixels of the frame, and clip them to the frame."""
        x, y = self.source[1] / self.valid[1], self.source[0] / self.valid[0]
        top, left = self.offset
        scaled = (boxes - np.array([left, top] * 2, np.float32)) * np.array([x, y, x, y], np.float32)
        limit = np.array([self.source[1], self.source[0]] * 2, np.float32)
        return np.clip(scaled, 0, limit).astype(np.float32)


def preprocess(frame: NDArray[np.uint8], spec: InputSpec) -> tuple[NDArray[np.float32], Geometry]:
    """Resize and normalise one frame into a model's input.

    Args:
        frame: pixels ``[H, W, 3]``, uint8, BGR.
        spec: size, colour order and normalisation of the model's input.

    Returns:
        Array ``[1, C, height, width]``, float32, contiguous, and the position of the frame in that array.
    """
    image, geometry = resize(frame, spec)
    channels = image.shape[2]
    # A single number counts for all channels; a gray image takes the first of three numbers.
    mean, std = (np.resize(np.asarray(values, np.float32), channels) for values in (spec.mean, spec.std))
    planes = np.full((1, channels, *spec.size), spec.pad, np.float32)
    # One multiply and one subtract straight into the planes: (pixel * scale - mean) / std.
    rows, columns = geometry.covered
    area = planes[0, :, rows, columns]
    np.multiply(image.transpose(2, 0, 1), (spec.scale / std)[:, None, None], out=area, casting="unsafe")
    area -= (mean / std)[:, None, None]
    return planes, geometry


def resize(frame: NDArray[np.uint8], spec: InputSpec) -> tuple[NDArray[np.uint8], Geometry]:
    """Resize a frame and convert its colours: the first half of :func:`preprocess`, without normalisation.

    Args:
        frame: pixels ``[H, W, 3]``, uint8, BGR.
        spec: size and colour order of the model's input.

    Returns:
        Pixels ``[height, width, C]``, uint8, of the area of the input that the frame covers, and the position of that
        area.
    """
    height, width = spec.size
    source = (frame.shape[0], frame.shape[1])
    valid, offset = (height, width), (0, 0)
    if spec.fit != "stretch":
        ratio = min(height / source[0], width / source[1])
        valid = (_whole(source[0] * ratio, height, spec), _whole(source[1] * ratio, width, spec))
    if spec.fit == "letterbox-center":
        offset = ((height - valid[0]) // 2, (width - valid[1]) // 2)
    # Detectors are trained and published with bilinear resizing without antialiasing: on 30 frames of a street, area
    # averaging lost 8 % of an SSDLite's detections above 0.3.
    image = cv2.resize(frame, (valid[1], valid[0]), interpolation=cv2.INTER_LINEAR)
    if spec.color == "rgb":
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    elif spec.color == "gray":
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[:, :, None]
    return np.asarray(image, np.uint8), Geometry(source, (height, width), valid, offset)


def _whole(length: float, most: int, spec: InputSpec) -> int:
    """Return a side of a letterboxed frame in whole pixels, at least 1 and at most ``most``."""
    if spec.rounding == "nearest":
        whole = round(length)
    else:
        # An error of floats must not add or drop a pixel of a length that is whole.
        whole = math.ceil(length - 1e-6) if spec.rounding == "up" else math.floor(length + 1e-6)
    return min(most, max(1, whole))

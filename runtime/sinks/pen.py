"""Pen that draws text and shapes on a frame, in sizes that fit the frame."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from math import isfinite, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from ...frames.frame import Image

__all__ = ["DARK", "LIGHT", "PALE", "Color", "Pen", "Rect", "ink_on", "overlapping"]

Color = tuple[int, int, int]
"""Colour as (blue, green, red), each 0 to 255."""
Rect = tuple[int, int, int, int]
"""Rectangle on a frame as (left, top, right, bottom) in pixels."""

DARK: Color = (24, 24, 24)
LIGHT: Color = (255, 255, 255)
PALE: Color = (205, 205, 205)

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_ONLY_ASCII = int(cv2.__version__.split(".")[0]) < 5
"""Whether the installed OpenCV draws only ASCII text, as versions before 5 do."""
_PANEL_OPACITY = 0.7
_MORE = "..."
"""Characters that end a text which was cut to fit."""
_FAR = 20_000
"""Maximum distance in pixels from the frame's edge of a point to draw: OpenCV's coordinates have few bits."""


class Pen:
    """Pen for one frame: draws on ``canvas`` with line widths and text sizes that fit the frame's size."""

    def __init__(self, canvas: Image) -> None:
        self.canvas = canvas
        self.height, self.width = canvas.shape[:2]
        side = sqrt(self.height * self.width)
        self._scale = min(max(side / 1150, 0.36), 1.8)
        self._weight = 1 if self._scale < 1 else 2
        # On a frame of few pixels, rims would be wider than what they surround.
        self._rims = side > 250
        self.line = max(2 if self._rims else 1, round(side / 360))
        """Width in pixels of the lines that the pen draws."""
        self.pad = max(2, round(7 * self._scale))
        """Space in pixels around the text that the pen draws."""
        (_, self.ascent), self._descent = cv2.getTextSize("Ag", _FONT, self._scale, self._weight)

    @property
    def row(self) -> int:
        """Height in pixels of a line of text that the pen draws."""
        return int(self.ascent + self._descent + self.pad)

    def text_width(self, text: str) -> int:
        """Return the width of a text in pixels."""
        return int(cv2.getTextSize(_drawable(text), _FONT, self._scale, self._weight)[0][0])

    def fit(self, text: str, width: int) -> str:
        """Return a text, cut and ended with three dots if it is wider than ``width`` pixels when drawn."""
        if self.text_width(text) <= width:
            return text
        short, long = 0, len(text)
        while short < long:
            middle = (short + long + 1) // 2
            short, long = (middle, long) if self.text_width(text[:middle] + _MORE) <= width else (short, middle - 1)
        return text[:short].rstrip() + _MORE if short else ""

    def text(self, text: str, x: int, top: int, color: Color) -> None:
        """Draw a line of text on the frame, with its left end at ``x`` and its upper edge at ``top``."""
        base = top + self.pad // 2 + self.ascent
        cv2.putText(self.canvas, _drawable(text), (x, base), _FONT, self._scale, color, self._weight, cv2.LINE_AA)

    def fill(self, rect: Rect, color: Color) -> None:
        """Fill a rectangle on the frame with a colour."""
        cv2.rectangle(self.canvas, rect[:2], (rect[2] - 1, rect[3] - 1), color, cv2.FILLED)

    def shade(self, rect: Rect) -> None:
        """Darken a rectangle on the frame, so that light text on it can be read."""
        left, top, right, bottom = rect
        area = self.canvas[top:bottom, left:right]
        area[:] = (area * (1 - _PANEL_OPACITY) + np.asarray(DARK) * _PANEL_OPACITY).astype(np.uint8)

    def outline(self, rect: Rect, color: Color) -> None:
        """Draw the outline of a rectangle on the frame.

        If there is room, a dark rim keeps the colour visible on a bright or busy background.
        """
        for rim, ink in ((2, DARK), (0, color)):
            if self._rims or not rim:
                cv2.rectangle(self.canvas, rect[:2], rect[2:], ink, self.line + rim)

    def dot(self, place: tuple[int, int], radius: int, color: Color) -> None:
        """Draw a disc on the frame, with a dark rim if there is room."""
        for rim, ink in ((1, DARK), (0, color)):
            if self._rims or not rim:
                cv2.circle(self.canvas, place, radius + rim, ink, cv2.FILLED, cv2.LINE_AA)

    def stroke(self, start: tuple[int, int], end: tuple[int, int], width: int, color: Color) -> None:
        """Draw a straight line on the frame."""
        cv2.line(self.canvas, start, end, color, width, cv2.LINE_AA)

    def corners(self, box: tuple[float, float, float, float]) -> Rect:
        """Return the corners of a box in whole pixels, clipped to the frame."""
        # A diverged model may answer NaN or huge numbers, which OpenCV refuses.
        x1, y1, x2, y2 = np.nan_to_num(np.asarray(box, np.float64), posinf=1e9, neginf=-1e9)
        right, bottom = self.width - 1, self.height - 1
        xs, ys = np.clip((x1, x2), 0, right), np.clip((y1, y2), 0, bottom)
        return round(xs[0]), round(ys[0]), round(xs[1]), round(ys[1])

    def place(self, x: float, y: float) -> tuple[int, int] | None:
        """Round a point to whole pixels; return None if the point lies far outside the frame or is not a number."""
        if not (isfinite(x) and isfinite(y)) or not -_FAR < min(x, y) <= max(x, y) < _FAR + max(
            self.width, self.height
        ):
            return None
        return round(x), round(y)

    def inside(self, rect: Rect) -> Rect:
        """Return a rectangle moved into the frame; one wider or higher than the frame begins at the frame's edge."""
        dx = max(0, -rect[0]) - max(0, rect[2] - max(self.width, rect[2] - rect[0]))
        dy = max(0, -rect[1]) - max(0, rect[3] - max(self.height, rect[3] - rect[1]))
        return rect[0] + dx, rect[1] + dy, rect[2] + dx, rect[3] + dy


def overlapping(rects: Sequence[Rect], others: Sequence[Rect]) -> NDArray[np.bool_]:
    """Return for each of ``rects`` whether it overlaps any of ``others``, as an array ``[len(rects)]``."""
    ours, theirs = np.array(rects).reshape(-1, 1, 4), np.array(others).reshape(1, -1, 4)
    common = np.minimum(ours[..., 2:], theirs[..., 2:]) > np.maximum(ours[..., :2], theirs[..., :2])
    found: NDArray[np.bool_] = common.all(axis=-1).any(axis=-1)
    return found


def ink_on(color: Color) -> Color:
    """Return the text colour, dark or light, that is easier to read on a background colour."""
    blue, green, red = color
    return DARK if 0.114 * blue + 0.587 * green + 0.299 * red > 120 else LIGHT


def _drawable(text: str) -> str:
    """Return a text in characters that OpenCV can draw: letters lose accents, and others become question marks."""
    text = "".join(character if character.isprintable() else " " for character in text)
    if not _ONLY_ASCII or text.isascii():
        return text
    plain = (each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    return "".join(each if each.isascii() else "?" for each in plain)

"""Drawing of results on frames: boxes, labels and a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from math import sqrt

import cv2
import numpy as np

from ...frames.frame import Image
from ..decode.results import Detection, Result
from .words import words

__all__ = ["Color", "annotate", "palette"]

Color = tuple[int, int, int]
"""Color for drawing on a frame: (blue, green, red), each 0 to 255."""

_COLORS: tuple[Color, ...] = (
    (255, 176, 0),
    (60, 105, 255),
    (120, 220, 60),
    (0, 215, 255),
    (200, 80, 220),
    (210, 210, 60),
    (150, 150, 255),
    (40, 160, 120),
)
"""Colours of the first queries, chosen to be told apart on streets, in rooms, and by most colour-blind people."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DARK: Color = (24, 24, 24)
_LIGHT: Color = (255, 255, 255)
_PALE: Color = (205, 205, 205)
_PANEL_OPACITY = 0.7

_Rect = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels."""


def palette(names: Sequence[str]) -> dict[str, Color]:
    """Return a colour for each name. The colour depends on the place of the name only."""
    return {name: _COLORS[i] if i < len(_COLORS) else _spread(i) for i, name in enumerate(names)}


def annotate(image: Image, results: Mapping[str, Result | None], colors: Mapping[str, Color]) -> Image:
    """Draw boxes with labels and scores, and a legend with a line for each query, on a copy of a frame.

    Args:
        image: ``[H, W, 3]`` uint8, BGR.
        results: newest result by query; None for a query without a result yet.
        colors: colour of each query.

    Returns:
        The copy, ``[H, W, 3]`` uint8, BGR.
    """
    canvas: Image = np.array(image)
    style = _Style(canvas)
    boxes = [
        (item, colors[query])
        for query, result in results.items()
        if isinstance(result, tuple)
        for item in result
        if isinstance(item, Detection)
    ]
    # All outlines first and then all text, so that no box covers a label. The box with the highest score lies on top,
    # and its label is placed first.
    boxes.sort(key=lambda box: box[0].score)
    for item, color in boxes:
        style.outline(item, color)
    lines = [(query, words(result) if result is not None else "-") for query, result in results.items()]
    taken = [style.legend_place(lines)]
    for item, color in reversed(boxes):
        taken.append(style.label(item, color, taken))
    style.legend(lines, colors)
    return canvas


class _Style:
    """A pen for one frame: draws on ``canvas`` with line widths and text sizes that fit the frame."""

    def __init__(self, canvas: Image) -> None:
        self._canvas = canvas
        self._height, self._width = canvas.shape[:2]
        side = sqrt(self._height * self._width)
        self._scale = min(max(side / 1150, 0.32), 1.8)
        self._line = max(1, round(side / 280))
        self._weight = 1 if self._scale < 1 else 2
        self._pad = max(2, round(7 * self._scale))
        (_, self._ascent), self._descent = cv2.getTextSize("Ag", _FONT, self._scale, self._weight)

    @property
    def _row(self) -> int:
        """Height of a line of text in pixels."""
        return int(self._ascent + self._descent + self._pad)

    def outline(self, item: Detection, color: Color) -> None:
        """Draw the box of a detection."""
        x1, y1, x2, y2 = self._corners(item)
        # A dark rim keeps the colour visible on a bright or busy background.
        cv2.rectangle(self._canvas, (x1, y1), (x2, y2), _DARK, self._line + 2)
        cv2.rectangle(self._canvas, (x1, y1), (x2, y2), color, self._line)

    def label(self, item: Detection, color: Color, taken: Sequence[_Rect]) -> _Rect:
        """Draw the label of a box where it covers least of the ``taken`` places, and return its place."""
        text = f"{item.label} {item.score:.2f}"
        width, height = self._text_width(text) + 2 * self._pad, self._row
        x1, y1, x2, y2 = self._corners(item)
        half = self._line // 2
        left, right = x1 - half, x2 + half + 1 - width
        above, below, within = y1 - half - height, y2 + half + 1, y1 - half
        places = [(x, y) for y in (above, below, within) for x in (left, right)]
        rects = [self._inside((x, y, x + width, y + height)) for x, y in places]
        rect = min(rects, key=lambda rect: sum(_overlap(rect, other) for other in taken))
        cv2.rectangle(self._canvas, rect[:2], (rect[2] - 1, rect[3] - 1), color, cv2.FILLED)
        self._text(text, rect[0] + self._pad, rect[1], _DARK if _bright(color) else _LIGHT)
        return rect

    def legend_place(self, lines: Sequence[tuple[str, str]]) -> _Rect:
        """Return the place of the legend, at the top left."""
        if not lines:
            return (0, 0, 0, 0)
        answers = max(self._text_width(answer) for _, answer in lines)
        margin = 2 * self._pad
        right = min(self._width, margin + self._answers_at(lines) + answers + self._pad)
        bottom = min(self._height, margin + len(lines) * self._row + self._pad)
        return margin, margin, max(right, margin), max(bottom, margin)

    def legend(self, lines: Sequence[tuple[str, str]], colors: Mapping[str, Color]) -> None:
        """Draw a line for each query: its colour, its name, and its newest result in words."""
        left, top, right, bottom = self.legend_place(lines)
        area = self._canvas[top:bottom, left:right]
        area[:] = (area * (1 - _PANEL_OPACITY) + np.asarray(_DARK) * _PANEL_OPACITY).astype(np.uint8)
        pad, swatch = self._pad, self._ascent
        for i, (name, answer) in enumerate(lines):
            x, y = left + pad, top + pad // 2 + i * self._row
            corner = (x, y + (self._row - swatch) // 2)
            cv2.rectangle(self._canvas, corner, (x + swatch, corner[1] + swatch), colors[name], cv2.FILLED)
            self._text(name, x + swatch + pad, y, _LIGHT)
            self._text(answer, left + self._answers_at(lines), y, _PALE)

    def _answers_at(self, lines: Sequence[tuple[str, str]]) -> int:
        """Return the pixels from the legend's left edge to its second column."""
        return self._ascent + max(self._text_width(name) for name, _ in lines) + 4 * self._pad

    def _text(self, text: str, x: int, top: int, color: Color) -> None:
        """Draw a line of text with its left end at ``x`` and its upper edge at ``top``."""
        base = top + self._pad // 2 + self._ascent
        cv2.putText(self._canvas, text, (x, base), _FONT, self._scale, color, self._weight, cv2.LINE_AA)

    def _text_width(self, text: str) -> int:
        return int(cv2.getTextSize(text, _FONT, self._scale, self._weight)[0][0])

    def _corners(self, item: Detection) -> _Rect:
        """Return the corners of a box in whole pixels, clipped to the frame."""
        # A diverged model may answer NaN or huge numbers, which OpenCV refuses.
        x1, y1, x2, y2 = np.nan_to_num(np.asarray(item.box, np.float64), posinf=1e9, neginf=-1e9)
        right, bottom = self._width - 1, self._height - 1
        xs, ys = np.clip((x1, x2), 0, right), np.clip((y1, y2), 0, bottom)
        return round(xs[0]), round(ys[0]), round(xs[1]), round(ys[1])

    def _inside(self, rect: _Rect) -> _Rect:
        """Move a rectangle into the frame; a rectangle wider or higher than the frame begins at its edge."""
        dx = max(0, -rect[0]) - max(0, rect[2] - max(self._width, rect[2] - rect[0]))
        dy = max(0, -rect[1]) - max(0, rect[3] - max(self._height, rect[3] - rect[1]))
        return rect[0] + dx, rect[1] + dy, rect[2] + dx, rect[3] + dy


def _overlap(a: _Rect, b: _Rect) -> int:
    """Return the number of pixels that both rectangles cover."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _bright(color: Color) -> bool:
    """Return whether dark text is easier to read on a colour than light text."""
    blue, green, red = color
    return 0.114 * blue + 0.587 * green + 0.299 * red > 120


def _spread(index: int) -> Color:
    """Return a colour for the query at a place that is beyond the chosen colours."""
    # Steps of the golden ratio: each hue falls into the largest gap between the hues before.
    red, green, blue = colorsys.hsv_to_rgb((index * 0.618034) % 1.0, 0.65, 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)

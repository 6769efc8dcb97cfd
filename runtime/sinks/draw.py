"""Drawing of results on frames: masks, boxes, points, labels, a legend and the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...frames.frame import Image
from ..decode.results import Detection, Result, Segmentation
from .legend import Legend
from .overlays import draw_points, paint_classes, paint_mask, spread_color
from .pen import LIGHT, Color, Pen, Rect, ink_on, overlapping

__all__ = ["annotate", "palette"]

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


def palette(names: Sequence[str]) -> dict[str, Color]:
    """Return a colour for each name. The colour depends on the place of the name only."""
    return {name: _COLORS[i] if i < len(_COLORS) else spread_color(i) for i, name in enumerate(names)}


def annotate(
    image: Image, results: Mapping[str, Result | None], colors: Mapping[str, Color], time: float | None = None
) -> Image:
    """Draw results, a legend with a line for each query, and the time on a copy of a frame.

    Args:
        image: ``[H, W, 3]`` uint8, BGR.
        results: newest result by query; None for a query without a result yet.
        colors: colour of each query.
        time: seconds of media at this frame; None to draw no time.

    Returns:
        The copy, ``[H, W, 3]`` uint8, BGR.
    """
    canvas: Image = np.array(image)
    pen = Pen(canvas)
    objects = [
        (item, colors[query])
        for query, result in results.items()
        if isinstance(result, tuple)
        for item in result
        if isinstance(item, Detection)
    ]
    # All areas first, then all lines, then all text, so that no box covers a label and no mask covers a box. The object
    # with the highest score lies on top, and its label is placed first.
    objects.sort(key=lambda each: each[0].score)
    for result in results.values():
        if isinstance(result, Segmentation):
            paint_classes(canvas, result)
    for item, color in objects:
        if item.mask is not None:
            paint_mask(canvas, item.mask, color, pen.line)
    for item, color in objects:
        pen.outline(pen.corners(item.box), color)
        draw_points(pen, item, color)
    legend = Legend(pen, results, colors)
    taken = [legend.rect]
    if time is not None:
        taken.append(_clock(pen, time))
    for item, color in reversed(objects):
        taken.append(_label(pen, item, color, taken))
    legend.draw()
    return canvas


def _label(pen: Pen, item: Detection, color: Color, taken: Sequence[Rect]) -> Rect:
    """Draw the label of a box where it covers none of the ``taken`` places, and return its place.

    Where there is no room, the score stands alone. Where there is no room for that, nothing is drawn, and the place is
    empty: the box still has the colour of its query.
    """
    score = f"{item.score:.2f}"
    for text in (f"{item.label} {score}", score):
        if (rect := _label_place(pen, item, text, taken)) is not None:
            pen.fill(rect, color)
            pen.text(text, rect[0] + pen.pad, rect[1], ink_on(color))
            return rect
    return (0, 0, 0, 0)


def _label_place(pen: Pen, item: Detection, text: str, taken: Sequence[Rect]) -> Rect | None:
    """Return the first place around a box where a text covers none of the ``taken`` places; None if there is none."""
    width, height = pen.text_width(text) + 2 * pen.pad, pen.row
    x1, y1, x2, y2 = pen.corners(item.box)
    half = pen.line // 2
    left, right = x1 - half, x2 + half + 1 - width
    above, below, within = y1 - half - height, y2 + half + 1, y1 - half
    rects = [pen.inside((x, y, x + width, y + height)) for y in (above, below, within) for x in (left, right)]
    return next((rect for rect, hidden in zip(rects, overlapping(rects, taken), strict=True) if not hidden), None)


def _clock(pen: Pen, time: float) -> Rect:
    """Draw the time at the lower left corner, and return its place."""
    text = clock(time)
    margin = 2 * pen.pad
    bottom = max(pen.row, pen.height - margin)
    rect = (margin, bottom - pen.row, min(pen.width, margin + pen.text_width(text) + 2 * pen.pad), bottom)
    pen.shade(rect)
    pen.text(text, margin + pen.pad, rect[1], LIGHT)
    return rect


def clock(seconds: float) -> str:
    """Return a time as hours, minutes, seconds and tenths; without hours in the first hour.

    >>> clock(83.46), clock(3600)
    ('1:23.4', '1:00:00.0')
    """
    # Cut, not rounded: a clock shows a second when it has begun.
    tenths = int(seconds * 10 + 1e-6)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    ahead = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{ahead}:{rest // 10:02d}.{rest % 10}"

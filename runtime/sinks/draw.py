"""Drawing of queries' results on frames: masks, boxes, points, labels, a legend and the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ...frames.frame import Image
from ..decode.results import Detection, Result, Segmentation
from .clock import draw_clock
from .legend import Legend
from .overlays import draw_points, paint_classes, paint_mask, spread_color
from .pen import Color, Pen, Rect, ink_on, overlapping

__all__ = ["Palette", "annotate"]

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


class Palette(dict[str, Color]):
    """Query name -> colour to draw its results in. The colour depends only on the name's position among the names.

    A name that is not in the mapping gets the next colour when it is looked up, because a run may get new queries.

    Args:
        names: query names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__({name: _color(index) for index, name in enumerate(names)})

    def __missing__(self, name: str) -> Color:
        return self.setdefault(name, _color(len(self)))


def _color(index: int) -> Color:
    return _COLORS[index] if index < len(_COLORS) else spread_color(index)


def annotate(
    image: Image,
    results: Mapping[str, Result | None],
    colors: Mapping[str, Color],
    time: float | None = None,
    at: float | None = None,
) -> Image:
    """Draw results, a legend with a line for each query, and the time on a copy of a frame.

    Args:
        image: ``[H, W, 3]`` uint8, BGR.
        results: newest result by query; None for a query without a result yet.
        colors: colour of each query.
        time: seconds of media at this frame; None to draw no time.
        at: time of day at which the frame arrived, in Unix seconds; None to draw only the seconds of media.

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
        taken.append(draw_clock(pen, time, at))
    for item, color in reversed(objects):
        taken.append(_label(pen, item, color, taken))
    legend.draw()
    return canvas


def _label(pen: Pen, item: Detection, color: Color, taken: Sequence[Rect]) -> Rect:
    """Draw the label and score of a detection at its box, where they cover no rectangle in ``taken``.

    If there is no room for both, only the score is drawn. If there is no room for the score, nothing is drawn; the box
    still has the colour of its query.

    Returns:
        The rectangle that the text covers; empty if nothing was drawn.
    """
    score = f"{item.score:.2f}"
    for text in (f"{item.label} {score}", score):
        if (rect := _label_place(pen, item, text, taken)) is not None:
            pen.fill(rect, color)
            pen.text(text, rect[0] + pen.pad, rect[1], ink_on(color))
            return rect
    return (0, 0, 0, 0)


def _label_place(pen: Pen, item: Detection, text: str, taken: Sequence[Rect]) -> Rect | None:
    """Return a rectangle at a detection's box where a text overlaps no rectangle in ``taken``; None if none is free."""
    width, height = pen.text_width(text) + 2 * pen.pad, pen.row
    x1, y1, x2, y2 = pen.corners(item.box)
    half = pen.line // 2
    left, right = x1 - half, x2 + half + 1 - width
    above, below, within = y1 - half - height, y2 + half + 1, y1 - half
    rects = [pen.inside((x, y, x + width, y + height)) for y in (above, below, within) for x in (left, right)]
    return next((rect for rect, hidden in zip(rects, overlapping(rects, taken), strict=True) if not hidden), None)

"""Drawing of masks, classes of pixels, keypoints and landmarks over a frame."""

from __future__ import annotations

import colorsys
from zlib import crc32

import cv2
import numpy as np

from ...frames.frame import Image
from ..decode.masks import class_map
from ..decode.results import Detection, Mask, Segmentation, SegmentedClass
from .pen import DARK, LIGHT, Color, Pen

__all__ = ["class_color", "draw_points", "paint_classes", "paint_mask", "spread_color"]

_CLASS_OPACITY = 0.5
_MASK_OPACITY = 0.4
_MOST_CLASSES = 255
"""Maximum number of classes of a segmented frame to draw, largest first."""
_VISIBLE = 0.3
"""Minimum score of a keypoint to draw."""
_COCO_BONES = (
    (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12),
    (11, 13), (13, 15), (12, 14), (14, 16),
)  # fmt: skip
"""Pairs of COCO's 17 keypoints that a line joins: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles."""
_COCO_POINTS = 17


def spread_color(index: int) -> Color:
    """Return a colour for the number of a query or class; neighbouring numbers get colours that are far apart."""
    # Steps of the golden ratio: each hue falls into the largest gap between the hues before.
    saturation, value = (0.65, 0.95) if index // 8 % 2 == 0 else (0.9, 0.75)
    red, green, blue = colorsys.hsv_to_rgb((index * 0.618034) % 1.0, saturation, value)
    return round(blue * 255), round(green * 255), round(red * 255)


def class_color(each: SegmentedClass) -> Color:
    """Return the colour in which a class of a segmented frame is drawn, the same in every frame."""
    return spread_color(each.class_id if each.class_id >= 0 else crc32(each.label.encode()) % 256)


def paint_classes(canvas: Image, result: Segmentation) -> None:
    """Tint every pixel of a segmented frame, in place, with the colour of its class.

    Nothing is drawn if the segmentation is of a frame with another size.
    """
    if not result.classes or result.size != canvas.shape[:2]:
        return
    # A map of numbers first, and colours for all classes at once: one by one they take ten times as long.
    largest = sorted(result.classes, key=lambda each: -each.mask.area())[:_MOST_CLASSES]
    numbers = class_map([each.mask.counts for each in largest], result.size)
    colors = np.zeros((256, 1, 3), np.uint8)
    colors[1 : len(largest) + 1, 0] = [class_color(each) for each in largest]
    flat = cv2.LUT(cv2.merge([numbers] * 3), colors)
    cv2.copyTo(cv2.addWeighted(canvas, 1 - _CLASS_OPACITY, flat, _CLASS_OPACITY, 0), numbers, canvas)


def paint_mask(canvas: Image, mask: Mask, color: Color, line: int) -> None:
    """Tint the pixels of an object on a frame and draw its edge, unless the mask is of a frame with another size.

    Args:
        canvas: frame to draw on, ``[H, W, 3]`` uint8, BGR.
        mask: pixels of the object.
        color: colour of the tint and the edge.
        line: width of the edge in pixels.
    """
    if mask.size != canvas.shape[:2]:
        return
    left, part = mask.columns()
    rows = np.flatnonzero(part.any(axis=1))
    if not len(rows):
        return
    top, inside = int(rows[0]), part[rows[0] : rows[-1] + 1].view(np.uint8)
    area = canvas[top : top + inside.shape[0], left : left + inside.shape[1]]
    tinted = cv2.addWeighted(area, 1 - _MASK_OPACITY, np.full_like(area, color), _MASK_OPACITY, 0)
    cv2.copyTo(tinted, inside, area)
    edges, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, edges, -1, color, line, cv2.LINE_AA, offset=(left, top))


def draw_points(pen: Pen, item: Detection, color: Color) -> None:
    """Draw a detection's landmarks and keypoints as dots; COCO's skeleton joins the keypoints if there are 17."""
    # Sizes fit the object, so that the skeleton of a small body is not a blot.
    _, y1, _, y2 = pen.corners(item.box)
    width, radius = (max(1, min(pen.line, round((y2 - y1) / part))) for part in (70, 30))
    places = [pen.place(x, y) if score >= _VISIBLE else None for x, y, score in item.keypoints]
    bones = _COCO_BONES if len(places) == _COCO_POINTS else ()
    for rim, ink in ((2, DARK), (0, color)):
        for first, second in bones:
            start, end = places[first], places[second]
            if start is not None and end is not None and (width > 1 or not rim):
                pen.stroke(start, end, width + rim, ink)
    for place in places:
        if place is not None:
            pen.dot(place, width if bones else radius, LIGHT if bones else color)
    for x, y in item.landmarks:
        if (place := pen.place(x, y)) is not None:
            pen.dot(place, radius, color)

"""Decoder of semantic segmentation models: a class for every pixel of the source frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...bundles.decode_specs import SegmentationDecode
from ...frames.preprocess import Geometry
from .activations import sigmoid, softmax
from .class_names import ClassNames
from .decoder import DecodeContext, FloatArray, RunStage
from .masks import encode_classes
from .results import Mask, Segmentation, SegmentedClass

__all__ = ["SegmentationDecoder"]

_HALF = 0.5
"""Score that a pixel must exceed to belong to a class, if the query has no threshold."""
_NONE = -1
"""Class number that stands for pixels which belong to no class."""
_NEIGHBOURS = np.ones((3, 3), np.uint8)
_Numbers = NDArray[np.int16]
"""Map of class numbers, ``[H, W]``; -1 where a pixel belongs to no class."""


class SegmentationDecoder:
    """Decoder of segmentation models that gives every pixel its best class, and returns a mask for each class.

    Scores are resized bilinearly to the frame, as Hugging Face's ``post_process_semantic_segmentation`` does. Scores
    of a letterboxed frame are first resized to the model's input and cut to the area of the frame. From a model that
    gives class numbers, the nearest pixel is taken. A pixel belongs to a class only if the class scores
    above the query's threshold. If the query has none, the threshold is 0.5 for models with one class or with sigmoids;
    with other models, every pixel has a class.

    If the query has one label less than the model has classes, class 0 is the background. The background is never
    reported, nor is a class whose label is "background".
    """

    def __init__(self, spec: SegmentationDecode, context: DecodeContext) -> None:
        self._spec = spec
        background = spec.classes > 1 and context.labels is not None and len(context.labels) == spec.classes - 1
        self._first = int(background)
        self._names = ClassNames(context, self._first)
        certain = spec.classes == 1 or spec.activation == "sigmoid"
        self._threshold = _HALF if context.threshold is None and certain else context.threshold

    def __call__(self, outputs: Mapping[str, FloatArray], geometry: Geometry, run: RunStage) -> Segmentation:
        output = outputs[self._spec.output][0]
        if self._spec.layout == "NHWC":
            output = np.moveaxis(output, -1, 0)
        scores = output.reshape(-1, *output.shape[-2:])
        if self._spec.class_numbers:
            numbers = _nearest(scores[0], geometry)
        elif len(scores) != self._spec.classes:
            raise ValueError(f"output {self._spec.output} has {len(scores)} classes, not {self._spec.classes}")
        elif len(scores) == 1:
            numbers = self._binary(scores[0], geometry)
        else:
            numbers = self._best(scores, geometry)
        return Segmentation(geometry.source, tuple(self._classes(numbers)))

    def _binary(self, scores: FloatArray, geometry: Geometry) -> _Numbers:
        """Return the map of class numbers for a model with one class: 0 where a pixel belongs to it, otherwise -1."""
        bound = self._threshold
        assert bound is not None
        if self._spec.activation == "sigmoid":
            # Scores before the sigmoid are compared with the threshold before the sigmoid: no pixel needs an exp.
            bound = math.log(bound / (1 - bound)) if 0 < bound < 1 else math.copysign(math.inf, bound - _HALF)
        return np.where(_linear(scores, geometry) > bound, 0, _NONE).astype(np.int16)

    def _best(self, scores: FloatArray, geometry: Geometry) -> _Numbers:
        """Return the map of best classes of ``scores [C, h, w]``, at the frame's size; of equal classes the lowest."""
        if self._threshold is not None and self._spec.activation == "softmax":
            scores = np.moveaxis(softmax(np.moveaxis(scores, 0, -1)), -1, 0)
        first, *others = _possible(scores, geometry.input)
        best = np.array(_linear(scores[first], geometry))
        numbers = np.full(geometry.source, first, np.int16)
        painted = np.empty_like(numbers)
        for number in others:
            plane = _linear(scores[number], geometry)
            painted.fill(number)
            # OpenCV sets the pixels of a ragged mask a hundred times as fast as NumPy.
            cv2.copyTo(painted, cv2.compare(plane, best, cv2.CMP_GT), numbers)
            np.maximum(best, plane, out=best)
        if self._threshold is not None:
            best = sigmoid(best) if self._spec.activation == "sigmoid" else best
            numbers[~(best > self._threshold)] = _NONE
        return numbers

    def _classes(self, numbers: _Numbers) -> list[SegmentedClass]:
        """Return the classes that occur in a map of class numbers and that the query reports, with their masks."""
        size = (numbers.shape[0], numbers.shape[1])
        found = []
        for number, counts in encode_classes(numbers).items():
            index = number - self._first
            if index < 0 or not self._names.wanted(np.array([index]))[0]:
                continue
            name = self._names.name(index)
            if name.strip("_").lower() != "background":
                found.append(SegmentedClass(name, number, Mask(size, counts)))
        return found


def _linear(plane: FloatArray, geometry: Geometry) -> FloatArray:
    """Resize the scores ``[h, w]`` of one class, which cover the model's input, to the frame's size ``[H, W]``.

    The result is not a copy if the sizes agree.
    """
    plane = np.ascontiguousarray(plane, np.float32)
    if geometry.valid != geometry.input:
        plane = _resized(plane, geometry.input)[geometry.covered]
    return _resized(plane, geometry.source)


def _resized(plane: FloatArray, size: Sequence[int]) -> FloatArray:
    if plane.shape == tuple(size):
        return plane
    resized: Any = cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32)


def _nearest(plane: NDArray[Any], geometry: Geometry) -> _Numbers:
    """Resize a map of class numbers from the model's input to the frame's size, taking the nearest pixel."""
    rows, columns = (
        (((np.arange(source) + 0.5) * (valid / source) + before) * (have / whole)).astype(np.intp).clip(0, have - 1)
        for source, valid, before, whole, have in zip(
            geometry.source, geometry.valid, geometry.offset, geometry.input, plane.shape, strict=True
        )
    )
    # Only the used numbers are converted: a number beyond int16 stands for no class.
    used = (plane >= 0) & (plane <= np.iinfo(np.int16).max)
    numbers = np.full(plane.shape, _NONE, np.int16)
    numbers[used] = plane[used]
    found: _Numbers = numbers[rows].take(columns, axis=1)
    return found


def _possible(scores: FloatArray, size: tuple[int, int]) -> list[int]:
    """Return the numbers of the classes that may have the highest score of some pixel after resizing; never empty.

    A resized score is a weighted mean of neighbouring scores, so it lies between their minimum and maximum. A class
    whose maximum is everywhere below the minimum of another class is nowhere the best. In a model with many classes,
    this excludes most of them before their scores are resized.

    Args:
        scores: scores of C classes, ``[C, h, w]``.
        size: (height, width) of the model's input.
    """
    everyone = list(range(len(scores)))
    if scores.shape[1] > size[0] or scores.shape[2] > size[1]:
        return everyone
    # Neighbouring pixels of the input are at most one score apart, so the pixels from which one pixel of the frame is
    # computed lie in a square of 3 by 3 scores.
    planes = [np.ascontiguousarray(plane, np.float32) for plane in scores]
    least = np.max([cv2.erode(plane, _NEIGHBOURS) for plane in planes], axis=0)
    possible = [number for number in everyone if (cv2.dilate(planes[number], _NEIGHBOURS) >= least).any()]
    return possible or everyone

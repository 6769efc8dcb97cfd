"""Queries of ONNX files that packages contain, and conversion of raw scores and boxes into answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gemel.bundles.manifest import InputSpec
from gemel.frames.frame import Image
from gemel.frames.preprocess import preprocess
from gemel.runtime.decode.masks import encode_classes
from gemel.runtime.decode.results import Class, Detection, Mask, Segmentation, SegmentedClass

from .case import Answer, Case, Prepare, Query, npm_file, package_file

__all__ = [
    "File",
    "in_npm",
    "in_package",
    "input_pixels",
    "one_class",
    "onnx_case",
    "onnx_query",
    "ranked_classes",
    "region_answer",
]

File = Callable[[], Path]
"""Function that returns a file; an npm package is downloaded only when the function is called."""


def in_package(package: str, path: str) -> File:
    """Return a function that returns a file of an installed Python package."""
    return lambda: package_file(package, path)


def in_npm(package: str, path: str) -> File:
    """Return a function that returns a file of an npm package."""
    return lambda: npm_file(package, path)


def onnx_query(
    task: str, file: File, charset: File | None = None, *, expects: Any = None, outputs: Any = None, **keys: Any
) -> Prepare:
    """Return a function that returns the query of an ONNX file.

    Args:
        task: task of the query.
        file: function that returns the path of the ONNX file.
        charset: function that returns the path of the file of characters; None if the ONNX file lists the characters.
        expects: input of the model, where neither the file nor the family of models tells; None to leave it out.
        outputs: outputs that are used; None for all.
        keys: further keys of the query.
    """

    def prepare(folder: Path) -> Query:
        model: dict[str, Any] = {"onnx": str(file())}
        model |= {} if expects is None else {"input": expects}
        model |= {} if outputs is None else {"outputs": outputs}
        return {"task": task, "model": model, **({} if charset is None else {"labels": str(charset())}), **keys}

    return prepare


def onnx_case(
    name: str, origin: str, query: Prepare, library: str, answers: Callable[[Path], Answer], **more: Any
) -> Case:
    """Return the case of a trained model; further keys are fields of :class:`Case`."""
    return Case(name, origin, True, query, library, answers, **more)


def input_pixels(**expects: Any) -> Callable[[Image], Any]:
    """Return a function that preprocesses a frame as gemel does, for libraries that do it in another way."""
    spec = InputSpec.model_validate(expects)
    return lambda image: preprocess(image, spec)[0]


def one_class(rows: Any, label: str, points: Any = None) -> tuple[Detection, ...]:
    """Return detections of one class.

    Args:
        rows: ``[K, 5]``: x1, y1, x2, y2 and score.
        label: name of the class.
        points: landmarks ``[K, P, 2]``; None for none.
    """
    dots = [()] * len(rows) if points is None else [tuple(map(tuple, each.tolist())) for each in points]
    return tuple(
        Detection((float(row[0]), float(row[1]), float(row[2]), float(row[3])), float(row[4]), label, 0, each)
        for row, each in zip(rows, dots, strict=True)
    )


def ranked_classes(scores: Any, labels: Sequence[str] | None = None) -> tuple[Class, ...]:
    """Return the five best classes of scores ``[C]``, best first."""
    best = np.argsort(-scores, kind="stable")[:5].tolist()
    return tuple(Class(labels[number] if labels else str(number), float(scores[number]), number) for number in best)


def region_answer(find: Callable[[Image], Any], label: str, threshold: float) -> Answer:
    """Return a function that answers a frame with the mask of one region.

    Args:
        find: function that returns scores ``[h, w]`` which cover a frame.
        label: name of the region.
        threshold: score from which a pixel belongs to the region.
    """

    def answer(image: Image) -> Segmentation:
        size = image.shape[0], image.shape[1]
        inside = cv2.resize(find(image), (size[1], size[0])) > threshold
        found = encode_classes(np.where(inside, 0, -1).astype(np.int16))
        return Segmentation(size, tuple(SegmentedClass(label, 0, Mask(size, counts)) for counts in found.values()))

    return answer

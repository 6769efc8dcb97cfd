"""Types of the results of queries (detections, classes, masks, text, ...), and their form in results.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .masks import encode_mask, mask_columns, mask_counts

__all__ = [
    "Class",
    "Detection",
    "Embedding",
    "Mask",
    "Raw",
    "Result",
    "Segmentation",
    "SegmentedClass",
    "Text",
    "result_to_json",
]

RAW_VALUES = 4096
"""Maximum number of values of one raw output in a line of results.jsonl; larger outputs go to a file of their own."""

SaveArray = Callable[[str, NDArray[Any]], str]
"""Function that saves a raw output to a file, given its name and values, and returns the path for results.jsonl."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Mask of an object or a class: the pixels of a source frame that belong to it."""

    size: tuple[int, int]
    """(height, width) of the source frame in pixels."""
    counts: str
    """Compressed run-length encoding of the mask, as COCO's tools write it."""

    @classmethod
    def of(cls, inside: NDArray[np.generic], size: tuple[int, int] | None = None, at: tuple[int, int] = (0, 0)) -> Mask:
        """Return a mask of the pixels where an array is not 0.

        Args:
            inside: ``[h, w]``, not 0 inside the mask.
            size: (height, width) of the source frame; None if ``inside`` covers all of it.
            at: row and column of the source frame where ``inside`` begins.

        Raises:
            ValueError: ``inside`` has not two axes, or reaches beyond the frame.
        """
        rows, columns = size or inside.shape
        return cls((int(rows), int(columns)), encode_mask(inside, size, at))

    def array(self) -> NDArray[np.bool_]:
        """Return the mask as an array of the frame's size, ``[height, width]``, true inside.

        Raises:
            ValueError: the encoded mask is damaged.
        """
        whole = np.zeros(self.size, np.bool_)
        left, part = self.columns()
        whole[:, left : left + part.shape[1]] = part
        return whole

    def columns(self) -> tuple[int, NDArray[np.bool_]]:
        """Return the columns of the frame that the mask touches: number of the first, and ``[height, columns]``.

        Raises:
            ValueError: the encoded mask is damaged.
        """
        return mask_columns(self.counts, self.size)

    def area(self) -> int:
        """Return the number of pixels inside the mask.

        Raises:
            ValueError: the encoded mask is damaged.
        """
        return int(mask_counts(self.counts, self.size)[1::2].sum())


@dataclass(frozen=True, slots=True)
class Detection:
    """One object that a detector found in a frame: its box, score and class, and perhaps points and a mask."""

    box: tuple[float, float, float, float]
    """Box of the detected object, x1, y1, x2, y2 in pixels of the source frame."""
    score: float
    """Confidence of the detection, 0 to 1."""
    label: str
    """Name of the detected object's class."""
    class_id: int = -1
    """Number of the detected object's class as the model counts; -1 if unknown."""
    landmarks: tuple[tuple[float, float], ...] = ()
    """Landmarks of a face: (x, y) in pixels of the source frame."""
    keypoints: tuple[tuple[float, float, float], ...] = ()
    """Keypoints of a body: (x, y) in pixels of the source frame, and the score of the point."""
    mask: Mask | None = None
    """Pixels of the detected object; None if the model gives no mask."""


@dataclass(frozen=True, slots=True)
class Class:
    """One class that a classifier gives an image, with its score."""

    label: str
    """Name of the class that the classifier gives the image."""
    score: float
    """Probability of the class, 0 to 1."""
    class_id: int = -1
    """Number of the class as the classifier counts; -1 if unknown."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Feature vector that an embedding model gives an image."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SegmentedClass:
    """One class of a semantically segmented frame, with the pixels that belong to it."""

    label: str
    """Name of the segmented class."""
    class_id: int
    """Number of the class as the segmentation model counts; -1 if unknown."""
    mask: Mask
    """Pixels of the frame that belong to the class; at least one."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """Semantic segmentation of a frame: one mask per class. Pixels outside all masks belong to no reported class."""

    size: tuple[int, int]
    """(height, width) of the source frame in pixels."""
    classes: tuple[SegmentedClass, ...]
    """Classes that occur in the frame, the lowest class number first."""


@dataclass(frozen=True, slots=True)
class Text:
    """Text that a text recogniser read in a frame."""

    text: str
    """Characters that were read in the frame, in reading order; empty if no text was read."""
    score: float
    """Mean probability of the text's characters, 0 to 1; 0 for an empty text."""


@dataclass(frozen=True, slots=True, eq=False)
class Raw:
    """Result of the task ``raw``: a model's outputs as they are. Results are equal only if they are the same object."""

    outputs: Mapping[str, NDArray[Any]]
    """Name of a model's output -> its values, with the batch axis if the output has one."""


Result = tuple[Detection, ...] | tuple[Class, ...] | Embedding | Segmentation | Text | Raw
"""Result of a query on one frame; detections and classes are sorted by score, best first."""


def result_to_json(result: Result, save: SaveArray | None = None) -> Any:
    """Return a query's result as the JSON value of the field ``result`` in a line of results.jsonl.

    Args:
        result: result of a query.
        save: function that saves an output of a raw result that has more than 4096 values. Without ``save``, only the
            dtype and shape of these outputs are returned.

    >>> result_to_json((Detection((1.0, 2.0, 3.0, 4.0), 0.5, "person"),))
    [{'box': [1.0, 2.0, 3.0, 4.0], 'score': 0.5, 'label': 'person'}]
    >>> result_to_json(Text("GO 4711", 0.98))
    {'text': 'GO 4711', 'score': 0.98}
    """
    if isinstance(result, Embedding):
        return [round(value, 6) for value in result.values]
    if isinstance(result, Text):
        return {"text": result.text, "score": round(result.score, 4)}
    if isinstance(result, Segmentation):
        classes = [_numbered(each.label, each.class_id) | {"mask": _mask(each.mask)} for each in result.classes]
        return {"size": list(result.size), "classes": classes}
    if isinstance(result, Raw):
        return {name: _output(name, values, save) for name, values in result.outputs.items()}
    return [_detection(item) if isinstance(item, Detection) else _class(item) for item in result]


def _detection(item: Detection) -> dict[str, Any]:
    box = [round(edge, 1) for edge in item.box]
    found: dict[str, Any] = {"box": box, "score": round(item.score, 4)} | _numbered(item.label, item.class_id)
    if item.landmarks:
        found["landmarks"] = [[round(x, 1), round(y, 1)] for x, y in item.landmarks]
    if item.keypoints:
        found["keypoints"] = [[round(x, 1), round(y, 1), round(score, 4)] for x, y, score in item.keypoints]
    if item.mask is not None:
        found["mask"] = _mask(item.mask)
    return found


def _class(item: Class) -> dict[str, Any]:
    found = _numbered(item.label, item.class_id)
    return {"label": found.pop("label"), "score": round(item.score, 4)} | found


def _numbered(label: str, class_id: int) -> dict[str, Any]:
    """Return a class as JSON fields: its label, and its number if it has one."""
    return {"label": label, "class_id": class_id} if class_id >= 0 else {"label": label}


def _mask(mask: Mask) -> dict[str, Any]:
    return {"size": list(mask.size), "counts": mask.counts}


def _output(name: str, values: NDArray[Any], save: SaveArray | None) -> dict[str, Any]:
    """Return one raw output as JSON fields. Values are one flat list in C order (the last axis varies fastest)."""
    found: dict[str, Any] = {"dtype": str(values.dtype), "shape": list(values.shape)}
    if values.size <= RAW_VALUES:
        found["values"] = _flat(values)
    elif save is not None:
        found["file"] = save(name, values)
    return found


def _flat(values: NDArray[Any]) -> list[Any]:
    """Return an array as a flat list for JSON. Floats of 16 and 32 bits get the fewest digits that identify them."""
    flat = values.reshape(-1)
    if values.dtype in (np.float16, np.float32):
        return [float(str(value)) for value in flat]
    items: list[Any] = flat.tolist()
    return items

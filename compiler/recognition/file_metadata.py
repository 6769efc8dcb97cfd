"""Metadata that exporters write into ONNX files: Ultralytics' task, names, size and stride; rapidocr's characters."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FileMetadata", "read_metadata"]

_MOST_TEXT = 1 << 20
"""Bytes of one entry that is read."""
_TASKS = {
    "detect": "detection",
    "segment": "segmentation",
    "pose": "pose",
    "classify": "classification",
    "obb": "oriented detection",
}
"""Ultralytics' name of a task -> gemel's."""
_GRAY_PAD = 114 / 255
"""Value around a frame that Ultralytics letterboxes."""


@dataclass(frozen=True)
class FileMetadata:
    """Metadata of a file, as far as gemel understands them."""

    task: str | None = None
    """Task that the model was trained for, as gemel calls it; ``oriented detection`` has no decoder."""
    names: tuple[str, ...] | None = None
    """Names of the classes."""
    size: tuple[int, int] | None = None
    """Height and width of the input in pixels."""
    end_to_end: bool = False
    """Whether the outputs are final detections."""
    keypoints: tuple[int, int] | None = None
    """Number of keypoints, and of values per keypoint."""
    characters: tuple[str, ...] | None = None
    """Characters that a model of text knows, in the order of its classes, without the blank; class names of others."""
    ultralytics: bool = False
    """Whether Ultralytics exported the file."""

    def class_names(self, task: str) -> tuple[str, ...] | None:
        """Return the names of the classes for a task; rapidocr's tools write those of every model as characters."""
        return self.names if self.names is not None or task == "ocr" else self.characters

    @property
    def input(self) -> dict[str, Any]:
        """Fields of the input that the exporter's models expect; empty if it is not known."""
        if not self.ultralytics:
            return {}
        if self.task == "classification":
            return {"color": "rgb", "scale": 1 / 255}
        return {"color": "rgb", "scale": 1 / 255, "fit": "letterbox-center", "pad": _GRAY_PAD}


def read_metadata(entries: Mapping[str, str]) -> FileMetadata:
    """Read the metadata of an ONNX file. Entries that are not understood are left out, as any program may write some.

    Args:
        entries: ``metadata_props`` of the file.
    """
    names = _names(_literal(entries.get("names")))
    options = _literal(entries.get("args"))
    options = options if isinstance(options, dict) else {}
    size = _integers(_literal(entries.get("imgsz")))
    points = _integers(_literal(entries.get("kpt_shape")))
    flags = [_literal(entries.get("end2end")), _literal(entries.get("nms")), options.get("nms"), options.get("end2end")]
    text = entries.get("character") or entries.get("dictionary")
    task = _TASKS.get(entries.get("task", ""))
    return FileMetadata(
        task=task,
        names=names,
        size=(size[0], size[1]) if size is not None and len(size) == 2 else None,
        end_to_end=any(flag is True for flag in flags),
        keypoints=(points[0], points[1]) if points is not None and len(points) == 2 else None,
        characters=tuple(text.splitlines()) if text and len(text) <= _MOST_TEXT else None,
        ultralytics=entries.get("author") == "Ultralytics" or (names is not None and "stride" in entries),
    )


def _literal(text: str | None) -> Any:
    """Return the value of a Python literal; None if the text is none, or too long."""
    if text is None or len(text) > _MOST_TEXT:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _names(value: Any) -> tuple[str, ...] | None:
    """Return the names of classes from a list, or from a mapping of the numbers 0, 1, ...; None if it is neither."""
    if isinstance(value, dict) and value and set(value) == set(range(len(value))):
        value = [value[index] for index in range(len(value))]
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None


def _integers(value: Any) -> list[int] | None:
    """Return a list of positive integers; None if the value is none."""
    if isinstance(value, int):
        value = [value, value]
    if isinstance(value, list | tuple) and all(isinstance(each, int) and each > 0 for each in value):
        return list(value)
    return None

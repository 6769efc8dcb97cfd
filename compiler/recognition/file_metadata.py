"""Metadata that exporters write into ONNX files: Ultralytics' and LibreYOLO's task and names; rapidocr's characters."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FileMetadata", "read_metadata"]

_MOST_TEXT = 1 << 20
"""Maximum number of characters of one metadata entry; a longer entry is ignored."""
_TASKS = {
    "detect": "detection",
    "segment": "segmentation",
    "pose": "pose",
    "classify": "classification",
    "obb": "oriented detection",
    "semantic": "segmentation",
    "depth": "depth estimation",
}
"""Ultralytics' name of a task -> gemel's name of the same task."""
_FITS = {"topleft": "letterbox", "center": "letterbox-center"}
"""LibreYOLO's name for the position of a letterboxed frame in the input -> gemel's name for this way to fit a frame."""
_GRAY_PAD = 114 / 255
"""Pixel value (0 to 1) with which Ultralytics fills the border of a letterboxed frame."""


@dataclass(frozen=True)
class FileMetadata:
    """Metadata of an ONNX file or a module, as far as gemel understands them."""

    task: str | None = None
    """Task that the model was trained for, as gemel calls it; ``oriented detection`` and ``depth estimation`` have no
    decoder."""
    names: tuple[str, ...] | None = None
    """Names of the model's classes, by class number; None if the metadata name none."""
    size: tuple[int, int] | None = None
    """Height and width of the model's input in pixels; None if the metadata do not say."""
    end_to_end: bool = False
    """Whether the model's outputs are final detections, so that the decoder suppresses no overlaps."""
    keypoints: tuple[int, int] | None = None
    """Number of keypoints of a pose model, and number of values per keypoint; None if the metadata do not say."""
    characters: tuple[str, ...] | None = None
    """Characters of a text recogniser in the order of its classes, without the blank; class names of other models."""
    family: str | None = None
    """Family of models that LibreYOLO names, such as ``picodet``; None if the metadata name none."""
    fit: str | None = None
    """Way in which LibreYOLO letterboxes a frame, as gemel calls it; None if the metadata do not say."""
    ultralytics: bool = False
    """Whether Ultralytics made the model or exported the file."""

    def class_names(self, task: str) -> tuple[str, ...] | None:
        """Return the class names that the metadata hold for a task; None if they hold none.

        rapidocr's tools write the class names of every model as characters.
        """
        return self.names if self.names is not None or task == "ocr" else self.characters

    @property
    def input(self) -> dict[str, Any]:
        """Fields of :class:`~gemel.bundles.manifest.InputSpec` that Ultralytics' models expect; empty for any other."""
        if not self.ultralytics:
            return {}
        if self.task == "classification":
            return {"color": "rgb", "scale": 1 / 255}
        return {"color": "rgb", "scale": 1 / 255, "fit": "letterbox-center", "pad": _GRAY_PAD}


def read_metadata(entries: Mapping[str, str]) -> FileMetadata:
    """Read the metadata of an ONNX file. Entries that are not understood are left out, as any program may write some.

    Args:
        entries: ``metadata_props`` of the file, or entries of the same form that describe a module.
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
        family=entries.get("model_family"),
        fit=_FITS.get(entries.get("letterbox_pad", "")),
        ultralytics=entries.get("author") == "Ultralytics" or (names is not None and "stride" in entries),
    )


def _literal(text: str | None) -> Any:
    """Return the value of a metadata entry that is a Python literal; None if it is not one, or too long."""
    if text is None or len(text) > _MOST_TEXT:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _names(value: Any) -> tuple[str, ...] | None:
    """Return class names from a list, or from a mapping of the class numbers 0, 1, ...; None for any other value."""
    if isinstance(value, dict):
        # JSON has text as keys.
        value = {int(key) if isinstance(key, str) and key.isdecimal() else key: name for key, name in value.items()}
    if isinstance(value, dict) and value and set(value) == set(range(len(value))):
        value = [value[index] for index in range(len(value))]
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None


def _integers(value: Any) -> list[int] | None:
    """Return a value as a list of positive integers, with one integer n as [n, n]; None for any other value."""
    if isinstance(value, int):
        value = [value, value]
    if isinstance(value, list | tuple) and all(isinstance(each, int) and each > 0 for each in value):
        return list(value)
    return None

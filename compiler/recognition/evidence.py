"""Evidence of what a model's outputs mean: their measured values, the model's metadata, the workload's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...bundles.decode_specs import DecodeSpec
from .file_metadata import FileMetadata

__all__ = [
    "Evidence",
    "Family",
    "MeasuredOutput",
    "OutputWords",
    "Recognised",
    "are_near_cells",
    "are_scores",
    "sum_to_one",
]

_TOLERANCE = 1e-3
"""Largest excess over the range 0 to 1 that counts as rounding of a score; float16 is rounded to about this."""


@dataclass(frozen=True)
class MeasuredOutput:
    """One output of a model, with its values on one image of noise."""

    name: str
    values: NDArray[Any]
    activation: Literal["softmax", "sigmoid"] | None = None
    """Activation that the model itself applies at the end of the output; None for any other, and if it is not known."""
    classes: int | None = None
    """Number of classes, if the output holds class numbers (argmax); None if it is not known."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output for one image, including the batch axis if the output has one."""
        return self.values.shape

    @property
    def is_float(self) -> bool:
        """Whether the output's values are floats."""
        return self.values.dtype.kind == "f"

    def __str__(self) -> str:
        return f"{self.name} {self.values.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class OutputWords:
    """Settings of a workload about a model's outputs."""

    decode: str | None = None
    """Family of models that the outputs belong to, such as ``yolov8``; None to recognise it."""
    activation: str | None = None
    """Function that turns outputs into scores, such as ``softmax``; None to recognise it."""
    labels: Sequence[str] | None = None
    """Names of the model's classes, or the characters of a text recogniser."""
    outputs: Sequence[str] | None = None
    """Outputs of the model to use, by name or position; None for all."""


@dataclass(frozen=True)
class Evidence:
    """Everything from which a model's decoder is chosen: measured outputs, metadata, and the workload's settings."""

    where: str
    """Name of the model's file or module, for error messages."""
    task: str
    outputs: tuple[MeasuredOutput, ...]
    size: tuple[int, int]
    """Height and width of the model's input in pixels."""
    metadata: FileMetadata
    decode: str | None = None
    """Family of models that the workload names; None to try all families."""
    activation: str | None = None
    """Function that turns outputs into scores, as the workload says; None to recognise it."""
    labels: Sequence[str] | None = None
    """Class names in the workload; for the task ``ocr``, the characters."""

    @property
    def names(self) -> Sequence[str] | None:
        """Names of the model's classes: those in the workload, or else those in the model's metadata."""
        return self.labels if self.labels is not None else self.metadata.class_names(self.task)

    @cached_property
    def floats(self) -> tuple[MeasuredOutput, ...]:
        """Outputs of the model whose values are floats."""
        return tuple(output for output in self.outputs if output.is_float)

    def of_rank(self, rank: int) -> tuple[MeasuredOutput, ...]:
        """Return the model's float outputs that have ``rank`` axes, the batch included."""
        return tuple(output for output in self.floats if len(output.shape) == rank)

    def cells(self, stride: int) -> int:
        """Return the number of cells of a grid over the model's input, with ``stride`` pixels per cell side."""
        return -(-self.size[0] // stride) * -(-self.size[1] // stride)

    def strides_of(self, places: int, kinds: int = 1) -> tuple[int, ...] | None:
        """Return the strides (pixels per cell side) of a detector's feature levels, given its number of boxes.

        None if no usual set of levels has this number.

        Args:
            places: number of candidate boxes on all levels.
            kinds: number of candidate boxes per cell.
        """
        for strides in ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32), (8, 16, 32, 64, 128)):
            if places == kinds * sum(map(self.cells, strides)):
                return strides
        return None

    def called(self, *names: str) -> bool:
        """Return whether the workload's ``decode``, or else the metadata, name a model family that is in ``names``."""
        return (self.decode if self.decode is not None else self.metadata.family) in names


@dataclass(frozen=True)
class Recognised:
    """Meaning of a model's outputs (its decoder), and the input that the model's family expects."""

    decode: DecodeSpec
    input: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~gemel.bundles.manifest.InputSpec` that the model's family needs."""
    labels: tuple[str, ...] | None = None
    """Class names that the model itself carries; None if it carries none."""
    first: str | None = None
    """Name of the output that must come first, because the decoder reads only the first; None if order is free."""


@dataclass(frozen=True)
class Family:
    """Family of models whose outputs mean the same, with the function that recognises them."""

    names: tuple[str, ...]
    """Names by which ``decode:`` in a workload may choose the family; messages use the first."""
    tasks: frozenset[str]
    outputs: str
    """Description of the outputs that models of the family have, for messages."""
    recognise: Callable[[Evidence], Recognised | None]
    """Function that returns the meaning of a model's outputs, or None if the model is not of the family."""


def are_scores(values: NDArray[Any]) -> bool:
    """Return whether all values are from 0 to 1, as they are after a sigmoid or softmax; logits of noise are not."""
    return bool(values.size == 0 or (values.min() >= -_TOLERANCE and values.max() <= 1 + _TOLERANCE))


def sum_to_one(values: NDArray[Any], axis: int = -1) -> bool:
    """Return whether values are probabilities that sum to 1 over an axis, as after a softmax."""
    return are_scores(values) and bool(np.allclose(values.astype(np.float64).sum(axis), 1, atol=10 * _TOLERANCE))


def are_near_cells(found: Evidence, boxes: NDArray[Any], strides: tuple[int, ...]) -> bool:
    """Return whether a detector's boxes are in input pixels: they then lie near the grid cells that they belong to.

    Boxes relative to a cell, as YOLOX has them, have nothing to do with where the cell lies.

    Args:
        found: evidence with the size of the input.
        boxes: boxes of the levels of ``strides``, ``[A, values]``, with a left edge or a centre first.
        strides: pixels per cell side of each feature level.
    """
    places = boxes[:, 0].astype(np.float64)
    expected = []
    for stride in strides:
        rows, columns = -(-found.size[0] // stride), -(-found.size[1] // stride)
        expected.append(np.tile((np.arange(columns) + 0.5) * stride, rows))
    cells = np.concatenate(expected)
    if places.std() == 0 or cells.std() == 0:
        return False
    return bool(np.corrcoef(places, cells)[0, 1] > 0.7)

"""Evidence for recognisers: a model's outputs as they were measured, its metadata, and the workload's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...bundles.decode_specs import DecodeSpec
from .file_metadata import FileMetadata

__all__ = ["Evidence", "Family", "MeasuredOutput", "OutputWords", "Recognised", "are_scores", "sum_to_one"]

_TOLERANCE = 1e-3
"""Rounding allowed in scores; float16 outputs are rounded to about this."""


@dataclass(frozen=True)
class MeasuredOutput:
    """One output of a model, with its values on one image of noise."""

    name: str
    values: NDArray[Any]
    activation: Literal["softmax", "sigmoid"] | None = None
    """Function that the model itself applies at the end of the output; None if it is none of these, or not known."""
    classes: int | None = None
    """Number of classes from which an output of class numbers chooses; None if it is not known."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape for one image, the batch included if the output has one."""
        return self.values.shape

    @property
    def is_float(self) -> bool:
        """Whether values are floats."""
        return self.values.dtype.kind == "f"

    def __str__(self) -> str:
        return f"{self.name} {self.values.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class OutputWords:
    """Settings of a workload that are about a model's outputs."""

    decode: str | None = None
    """Family of models, such as ``yolov8``; None to find it."""
    activation: str | None = None
    """Function that turns outputs into scores; None to find it."""
    labels: Sequence[str] | None = None
    """Names of the classes, or characters of a model of text."""
    outputs: Sequence[str] | None = None
    """Outputs to use, by name or position; None for all."""


@dataclass(frozen=True)
class Evidence:
    """Everything that tells the meaning of a model's outputs."""

    where: str
    """File or module, for messages."""
    task: str
    outputs: tuple[MeasuredOutput, ...]
    size: tuple[int, int]
    """Height and width of the input in pixels."""
    metadata: FileMetadata
    decode: str | None = None
    """Family that the workload names; None to try all."""
    activation: str | None = None
    """Function that the workload says turns outputs into scores; None to find out."""
    labels: Sequence[str] | None = None
    """Labels of the workload; for the task ocr its characters."""

    @property
    def names(self) -> Sequence[str] | None:
        """Names of the classes: the workload's, or else the model's."""
        return self.labels if self.labels is not None else self.metadata.class_names(self.task)

    @cached_property
    def floats(self) -> tuple[MeasuredOutput, ...]:
        """Outputs that are floats."""
        return tuple(output for output in self.outputs if output.is_float)

    def of_rank(self, rank: int) -> tuple[MeasuredOutput, ...]:
        """Return the float outputs with some number of axes, the batch included."""
        return tuple(output for output in self.floats if len(output.shape) == rank)

    def cells(self, stride: int) -> int:
        """Return the number of cells of a grid over the input with this many pixels per cell."""
        return -(-self.size[0] // stride) * -(-self.size[1] // stride)

    def strides_of(self, places: int, kinds: int = 1) -> tuple[int, ...] | None:
        """Return the strides of the levels that together have a number of places; None if no usual levels have.

        Args:
            places: places of all levels.
            kinds: places per cell.
        """
        for strides in ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32), (8, 16, 32, 64, 128)):
            if places == kinds * sum(map(self.cells, strides)):
                return strides
        return None

    def called(self, *names: str) -> bool:
        """Return whether the workload names one of these families."""
        return self.decode in names


@dataclass(frozen=True)
class Recognised:
    """Meaning of a model's outputs, and what the model expects as input."""

    decode: DecodeSpec
    input: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~gemel.bundles.manifest.InputSpec` that this family of models needs."""
    labels: tuple[str, ...] | None = None
    """Labels that the model itself names; None if it names none."""
    first: str | None = None
    """Output that must come first, because the decoder reads the first."""


@dataclass(frozen=True)
class Family:
    """Models whose outputs mean the same."""

    names: tuple[str, ...]
    """Names that ``decode:`` may give it; the first one is used in messages."""
    tasks: frozenset[str]
    outputs: str
    """Outputs that are recognised, for messages."""
    recognise: Callable[[Evidence], Recognised | None]
    """Function that returns the meaning of outputs; None if they are not of this family."""


def are_scores(values: NDArray[Any]) -> bool:
    """Return whether all values are from 0 to 1, as they are after a sigmoid or softmax; logits of noise are not."""
    return bool(values.size == 0 or (values.min() >= -_TOLERANCE and values.max() <= 1 + _TOLERANCE))


def sum_to_one(values: NDArray[Any], axis: int = -1) -> bool:
    """Return whether values are probabilities that a softmax over an axis has made."""
    return are_scores(values) and bool(np.allclose(values.astype(np.float64).sum(axis), 1, atol=10 * _TOLERANCE))

"""Entries of the manifest for the ONNX files of a model: stages, and the parts of a stage that models share."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import Field, field_validator

from .value import Value

__all__ = ["Id", "Port", "Sha256", "Stage", "StemSpec", "flat_name", "stem_id"]

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""First 128 bits of a SHA-256, in hex: names tensors and programs by their content."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hex. That of a bundle's manifest is the bundle's id."""


class Port(Value):
    """Name, dtype and shape of an input or output of a graph. A dimension that is a string is free: the batch, or a
    number of rows that varies."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Stage(Value):
    """One ONNX file of a model: a program, and the tensors that make the program this model."""

    file: str
    program: Id
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: tuple[Id, ...]
    """Ids of the weights of one ONNX file, in the order in which the file's program (its graph) first uses them. A
    weight is a tensor, or a kernel that the manifest's ``forms`` list."""

    @property
    def takes_batches(self) -> bool:
        """Whether the number of images is the first dimension of all ports, and every other size is known."""
        shapes = [port.shape for port in (*self.inputs, *self.outputs)]
        first = {shape[0] if shape else 1 for shape in shapes}
        rest = (size for shape in shapes for size in shape[1:])
        return len(first) == 1 and isinstance(first.pop(), str) and all(isinstance(size, int) for size in rest)

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str) -> str:
        return flat_name(value)


class StemSpec(Value):
    """Stage ``main`` of a model in two parts, of which the first is equal in other models that see the same frames.

    The parts compute what ``main`` computes, on tensors of ``main``. A reader may ignore them.
    """

    id: Id
    """Hash of the stem's program and weights; equal for all models that have the stem."""
    stem: Stage
    """First part: from the frame to the values that the second part reads."""
    rest: Stage
    """Second part: from outputs of ``stem``, and the frame where a port has the name of the stem's input, to the
    outputs of ``main``."""


def stem_id(stem: Stage) -> str:
    """Return the id of a stem: equal for stems with equal programs and weights."""
    return hashlib.sha256("\n".join((stem.program, *stem.weights)).encode()).hexdigest()[:32]


def flat_name(name: str) -> str:
    """Return a file name if the file lies directly in the bundle's folder.

    Raises:
        ValueError: the name could lead out of the folder, or is not printable or too long for a file system.
    """
    plain = name.isprintable() and "\\" not in name and len(name.encode()) < 256
    if name in ("", ".", "..") or PurePosixPath(name).name != name or not plain:
        raise ValueError(f"{name!r} is not a plain file name; files of a bundle lie directly in its folder")
    return name

"""The blob: every distinct tensor once, grouped into segments by the models that use it.

A *segment* holds the tensors used by exactly the same set of models. It is the unit of residency, because a model that
needs one of its tensors needs all of them.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import SegmentSpec, TensorSpec

__all__ = ["HUGE_PAGE", "PAGE", "TENSOR_ALIGNMENT", "Layout", "footprint", "layout", "tensor_id", "write_blob"]

HUGE_PAGE = 2 << 20
"""Bytes of a large page, on which a segment of this size or more starts."""
PAGE = 4 << 10
"""Bytes of a page, on which every segment starts."""
TENSOR_ALIGNMENT = 64
"""Bytes of a cache line, on which every tensor starts: vector loads and device copies are fastest there."""


def tensor_id(array: NDArray[Any]) -> str:
    """Return the name of a tensor: a hash of dtype, shape and bytes (SHA-256, the first 128 bits in hex)."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Layout:
    """Places of all tensors and segments of a blob."""

    tensors: dict[str, TensorSpec]
    segments: dict[str, SegmentSpec]
    bytes: int
    """Size of the blob, padding included."""


def layout(shapes: Mapping[str, tuple[str, tuple[int, ...]]], users: Mapping[str, Iterable[str]]) -> Layout:
    """Place tensors in segments; pure and deterministic.

    Segments start on a page (:data:`PAGE`, large ones :data:`HUGE_PAGE`) with a page or more between them, so that each
    can be mapped, dropped and copied on its own. Tensors start on a cache line (:data:`TENSOR_ALIGNMENT`).

    Args:
        shapes: tensor id to (dtype, shape).
        users: tensor id to the models that use the tensor.

    Returns:
        Tensors, and segments named ``s0``, ``s1``, ..., the most shared segment first.
    """
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for tensor in shapes:
        groups[tuple(sorted(set(users[tensor])))].append(tensor)
    tensors: dict[str, TensorSpec] = {}
    segments: dict[str, SegmentSpec] = {}
    end = 0
    for index, (models, members) in enumerate(sorted(groups.items(), key=lambda item: (-len(item[0]), item[0]))):
        sizes = {tensor: _nbytes(*shapes[tensor]) for tensor in members}
        length = 0
        relative: dict[str, int] = {}
        for tensor in members:
            relative[tensor] = length = _up(length, TENSOR_ALIGNMENT)
            length += sizes[tensor]
        start = _up(end, HUGE_PAGE if length >= HUGE_PAGE else PAGE)
        for tensor in members:
            dtype, shape = shapes[tensor]
            tensors[tensor] = TensorSpec(
                offset=start + relative[tensor], length=sizes[tensor], dtype=dtype, shape=tuple(shape)
            )
        segments[f"s{index}"] = SegmentSpec(models=models, offset=start, length=length, tensors=tuple(members))
        end = start + footprint(length) + PAGE
    # At least a page: an empty file cannot be mapped.
    return Layout(tensors, segments, max(end - PAGE, PAGE))


def footprint(length: int) -> int:
    """Return the bytes of memory that a segment of ``length`` bytes takes when it is mapped: whole pages."""
    return _up(length, PAGE)


def write_blob(path: Path, placed: Layout, read: Callable[[str], NDArray[Any]]) -> str:
    """Write the blob. Padding becomes holes in the file, which take no space on disk.

    Args:
        path: file to create; it must not exist.
        placed: places from :func:`layout`.
        read: returns the array of a tensor id; called once per tensor, in order of offset.

    Returns:
        SHA-256 of the file's content, in hex.
    """
    digest = hashlib.sha256()
    position = 0
    with path.open("xb") as file:
        for tensor, spec in sorted(placed.tensors.items(), key=lambda item: item[1].offset):
            digest.update(bytes(spec.offset - position))
            file.seek(spec.offset)
            data = np.ascontiguousarray(read(tensor)).reshape(-1).view(np.uint8).data
            file.write(data)
            digest.update(data)
            position = spec.offset + spec.length
        digest.update(bytes(placed.bytes - position))
        file.truncate(placed.bytes)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64)))

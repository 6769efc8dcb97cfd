"""Layout and writing of the blob: the file that holds every distinct tensor of a bundle once, grouped into segments.

A *segment* holds the tensors that are used by exactly the same set of models. Segments are loaded and evicted whole,
because a model that needs one tensor of a segment needs all of them.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import SegmentSpec, TensorSpec

__all__ = ["HUGE_PAGE", "PAGE", "TENSOR_ALIGNMENT", "Layout", "footprint", "layout", "tensor_id", "write_blob"]

HUGE_PAGE = 2 << 20
"""Size of a large memory page in bytes; a segment of at least this size starts at a multiple of it."""
PAGE = 4 << 10
"""Size of a memory page in bytes; every segment starts at a multiple of it."""
TENSOR_ALIGNMENT = 64
"""Size of a cache line in bytes. Every tensor starts at a multiple of it, where loads and copies are fastest."""


def tensor_id(array: NDArray[Any]) -> str:
    """Return the id of a tensor: the first 128 bits, in hex, of the SHA-256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Layout:
    """Offsets and lengths of all tensors and segments of a blob."""

    tensors: dict[str, TensorSpec]
    """Tensor id -> offset in the blob, length, dtype and shape of the tensor."""
    segments: dict[str, SegmentSpec]
    """Segment name -> offset in the blob, length, tensors and models of the segment."""
    bytes: int
    """Size of a blob in bytes, padding included."""


def layout(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    users: Mapping[str, Iterable[str]],
    apart: Collection[str] = (),
    prefix: str = "s",
) -> Layout:
    """Assign tensors to segments, and tensors and segments to offsets in a blob. The function is deterministic.

    Segments start at a multiple of :data:`PAGE` (large ones, of :data:`HUGE_PAGE`) with at least one page between
    them, so that each can be mapped, evicted and copied on its own. Tensors start at a multiple of
    :data:`TENSOR_ALIGNMENT`.

    Args:
        shapes: tensor id -> (dtype, shape).
        users: tensor id -> names of the models that use the tensor.
        apart: ids of tensors that share no segment with others, because they are needed at other times.
        prefix: beginning of the segments' names.

    Returns:
        Layout whose segments are named ``s0``, ``s1``, ...; segments that more models use come first.
    """
    groups: dict[tuple[tuple[str, ...], bool], list[str]] = defaultdict(list)
    for tensor in shapes:
        groups[tuple(sorted(set(users[tensor]))), tensor in apart].append(tensor)
    tensors: dict[str, TensorSpec] = {}
    segments: dict[str, SegmentSpec] = {}
    end = 0
    in_order = sorted(groups.items(), key=lambda item: (-len(item[0][0]), item[0]))
    for index, ((models, _), members) in enumerate(in_order):
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
        segments[f"{prefix}{index}"] = SegmentSpec(models=models, offset=start, length=length, tensors=tuple(members))
        end = start + footprint(length) + PAGE
    # At least a page: an empty file cannot be mapped.
    return Layout(tensors, segments, max(end - PAGE, PAGE))


def footprint(length: int) -> int:
    """Return the bytes of memory that a mapped segment of ``length`` bytes takes: ``length`` in whole pages."""
    return _up(length, PAGE)


def write_blob(path: Path, placed: Layout, read: Callable[[str], NDArray[Any]]) -> str:
    """Write a blob to a file. Padding becomes holes in the file, which take no space on disk.

    Args:
        path: file to create; it must not exist.
        placed: layout of the blob, from :func:`layout`.
        read: function that returns the array of a tensor id, called once per tensor in the order of offsets.

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
    """Return an offset or size in a blob, rounded up to a multiple of ``alignment``."""
    return -(-value // alignment) * alignment


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes an array with the given dtype and shape takes."""
    return int(np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64)))

"""Blobs of noise on disk, and a check that a device arena holds the right bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemel.bundles.manifest import SegmentSpec, TensorSpec
from gemel.runtime.device import Device
from gemel.runtime.memory.device_arena import DeviceArena

__all__ = ["PAGE", "Segments", "write_segments"]

PAGE = 4096
_FIRST = 64
"""Bytes of a segment's first tensor; the rest of the segment is its second."""


@dataclass(frozen=True)
class Segments:
    """Blob of segments ``s0``, ``s1``, ..., each with two tensors."""

    path: Path
    data: bytes
    tensors: dict[str, TensorSpec]
    segments: dict[str, SegmentSpec]

    def check(self, device: Device, arena: DeviceArena, segments: Sequence[str]) -> None:
        """Compare every tensor on the device with the file. Call inside :meth:`DeviceArena.running`."""
        stream = device.stream()
        for segment in segments:
            for tensor in self.segments[segment].tensors:
                spec = self.tensors[tensor]
                came: NDArray[np.uint8] = np.zeros(spec.length, np.uint8)
                if spec.length:
                    device.download(came, arena.address(tensor), stream)
                    stream.synchronize()
                assert came.tobytes() == self.data[spec.offset : spec.offset + spec.length], segment


def write_segments(folder: Path, sizes: Sequence[int]) -> Segments:
    """Write segments of the given bytes to a file, each at the start of a page and with at least a page behind it."""
    tensors: dict[str, TensorSpec] = {}
    segments: dict[str, SegmentSpec] = {}
    data = bytearray()
    for index, size in enumerate(sizes):
        begin, first = len(data), min(size, _FIRST)
        data += np.random.default_rng(index).bytes(size) + bytes(-size % PAGE + PAGE)
        names = tuple(f"{2 * index + number:032x}" for number in range(2))
        for name, offset, length in zip(names, (begin, begin + first), (first, size - first), strict=True):
            tensors[name] = TensorSpec(offset=offset, length=length, dtype="uint8", shape=(length,))
        segments[f"s{index}"] = SegmentSpec(models=("m",), offset=begin, length=size, tensors=names)
    path = folder / "weights"
    path.write_bytes(data)
    return Segments(path, bytes(data), tensors, segments)

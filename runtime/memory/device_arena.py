"""Device arena: segments of one blob in one allocation on a device.

The allocation is made once and never grows; a :class:`Slab` decides where in it segments lie. Segments are copied from
the mapped blob through two page-locked buffers: one is filled while the other is on its way. Where free memory is
split into pieces too small for a segment, the arena is compacted between two runs.

The loader's thread does all loads, evictions and moves, in the order in which they were asked for. The slab, the
stream and the buffers belong to that thread. Other threads see the addresses of segments only.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from threading import Lock
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...bundles import blob
from ...bundles.manifest import SegmentSpec, TensorSpec
from ...errors import BackendError
from ..device import Device
from .arena import WARM, Arena, Loading
from .host_arena import forget
from .slab import Move, Slab

__all__ = ["DeviceArena"]

_ALIGNMENT = 256
"""Bytes of which every segment's address is a multiple."""
_BUFFER = 4 << 20
"""Bytes of each of the two page-locked buffers."""
_SHORT = 128 << 10
"""Bytes that a device moves in about the time that asking for a move takes."""


class DeviceArena(Arena):
    """Segments of one blob in the memory of one device.

    Args:
        device: device that holds the segments. The caller closes the device, after this arena.
        path: file of the blob, which is mapped read-only.
        tensors: tensor id to its place in the blob.
        segments: segment id to its place in the blob.
        budget: bytes that may be resident at once. The arena allocates them now, or fewer if all segments need less.
        loading: how segments are loaded.

    Raises:
        BackendError: the device has too little free memory.
    """

    # A copy to the device takes longer than waking the loader's thread.
    _inline: ClassVar[bool] = False

    def __init__(
        self,
        device: Device,
        path: Path,
        tensors: Mapping[str, TensorSpec],
        segments: Mapping[str, SegmentSpec],
        budget: int | None = None,
        loading: Loading = WARM,
    ) -> None:
        super().__init__({name: self.footprint(spec.length) for name, spec in segments.items()}, budget, loading)
        self._device, self._path = device, path
        self._tensors, self._segments = tensors, segments
        self._segment_of = {tensor: name for name, spec in segments.items() for tensor in spec.tensors}
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._stream, self._moved = device.stream(), device.event()
        self._buffers = deque((device.pinned(_BUFFER), device.event()) for _ in range(2))
        self._still = Lock()
        self._places: dict[str, int] = {}
        # Sizes are whole units of the slab: segments that fit the budget fit the slab.
        self._slab = Slab(min(self.budget, sum(self.sizes.values())), _ALIGNMENT)
        self._base = device.allocate(self._slab.size) if self._slab.size else 0

    @staticmethod
    def footprint(length: int) -> int:
        """Return the bytes of device memory that a segment of ``length`` bytes takes."""
        return -(-length // _ALIGNMENT) * _ALIGNMENT

    def running(self) -> AbstractContextManager[object]:
        """Return a context in which resident segments keep their addresses; a run enters it until the device is done.

        One thread at a time may enter the context. It must not wait for segments inside: the loader may be waiting for
        it to leave.
        """
        return self._still

    def place(self, segment: str) -> int:
        """Return the device address of a segment. While the address stays the same, so do those of its tensors.

        Raises:
            BackendError: the segment is not in the device's memory.
        """
        place = self._places.get(segment)
        if place is None:
            raise BackendError(f"arena: segment {segment} is not in the memory of {self._device.name}")
        return place

    def address(self, tensor: str) -> int:
        """Return the device address of a tensor: contiguous, with the dtype and shape of its spec.

        The address is valid only inside :meth:`running`, and while the segment is held.

        Raises:
            BackendError: the tensor is not in the device's memory.
        """
        segment = self._segment_of[tensor]
        return self.place(segment) + self._tensors[tensor].offset - self._segments[segment].offset

    def evict(self) -> None:
        super().evict()
        self._loader.submit(lambda: None).result()

    def close(self) -> None:
        """Wait for loading to end, and give the device memory back. Idempotent."""
        super().close()
        self._places.clear()
        self._buffers.clear()
        if self._base:
            self._device.free(self._base)
            self._base = 0

    def _kept(self, segment: str) -> bool:
        return segment in self._places

    def _load(self, segment: str) -> None:
        spec = self._segments[segment]
        place = self._slab.allocate(segment, spec.length)
        if place is None:
            self._compact()
            place = self._slab.allocate(segment, spec.length)
        assert place is not None, "the segments to be loaded are larger than the budget"
        self._upload(self._base + place, self._bytes[spec.offset : spec.offset + spec.length])
        self._places[segment] = self._base + place
        # The device has a copy now. Unmapped, the pages count as page cache, which the system may take back.
        self._map.madvise(mmap.MADV_DONTNEED)

    def _drop(self, segment: str) -> None:
        self._places.pop(segment, None)
        # A segment whose load failed may have no place.
        with suppress(KeyError):
            self._slab.free(segment)
        if self._loading.cold:
            spec = self._segments[segment]
            forget(self._path, spec.offset, blob.footprint(spec.length))

    def _upload(self, target: int, source: NDArray[np.uint8]) -> None:
        """Copy bytes to a device address, and return when they are there."""
        for begin in range(0, len(source), _BUFFER):
            piece = source[begin : begin + _BUFFER]
            buffer, sent = self._buffers[0]
            self._buffers.rotate()
            if not self._device.unified:
                sent.synchronize()
                buffer[: len(piece)] = piece
                piece = buffer[: len(piece)]
            self._device.upload(target + begin, piece, self._stream)
            sent.record(self._stream)
        for _, sent in self._buffers:
            sent.synchronize()

    def _compact(self) -> None:
        """Move segments together, so that all free memory is one piece. Nothing runs meanwhile.

        If a move fails, the contents of every segment that was to be moved are unknown. These segments are lost: they
        are no longer in memory, and are loaded again when a model acquires them.
        """
        with self._still:
            moves = self._slab.compact()
            try:
                for move in moves:
                    self._move(move)
                self._moved.record(self._stream)
                self._moved.synchronize()
            except BaseException:
                for move in moves:
                    self._drop(move.name)
                raise
            self._places.update((move.name, self._base + move.target) for move in moves)

    def _move(self, move: Move) -> None:
        """Copy a segment towards the front. A device cannot copy between places that overlap: pieces go one by one."""
        source, target, distance = self._base + move.source, self._base + move.target, move.source - move.target
        if distance >= min(move.length, _SHORT):
            for begin, size in _pieces(move.length, distance):
                self._device.move(target + begin, source + begin, size, self._stream)
        else:
            # Through a page-locked buffer: less bandwidth, but fewer copies than one for every few bytes.
            buffer = self._buffers[0][0]
            for begin, size in _pieces(move.length, len(buffer)):
                self._device.download(buffer[:size], source + begin, self._stream)
                self._device.upload(target + begin, buffer[:size], self._stream)


def _pieces(length: int, most: int) -> Iterable[tuple[int, int]]:
    """Return (begin, size) of the pieces of at most ``most`` bytes that make up ``length`` bytes."""
    return ((begin, min(most, length - begin)) for begin in range(0, length, most))

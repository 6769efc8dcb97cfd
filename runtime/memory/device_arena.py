"""The device arena: segments of a blob in one allocation on a device.

The allocation is made once and never grows; a :class:`Slab` says where in it segments lie. They come from the mapped
blob through two pinned buffers, of which one is filled while the other is on its way. Where the room for a segment is
in pieces, what is there is moved together, between two runs.

Everything is loaded, dropped and moved by the loader's thread, in the order in which it was asked for: the slab, the
stream and the buffers are its own. What others see is where segments are.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from threading import Lock

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
_BUFFER = 4 << 20
_SHORT = 128 << 10
"""Bytes that are moved on a device in about the time that asking for it takes."""


class DeviceArena(Arena):
    """Segments of one blob.

    Args:
        device: where they go; it is the caller's to close, after this.
        path: the blob, which is mapped read-only.
        tensors: tensor id to place in the blob.
        segments: segment id to place in the blob.
        budget: bytes that may be resident at once. They are allocated here and now, or what all segments need if that
            is less.
        loading: how segments come.

    Raises:
        BackendError: the device does not have so much.
    """

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
        # Sizes are whole units of the slab, so what is within the budget is within the slab.
        self._slab = Slab(min(self.budget, sum(self.sizes.values())), _ALIGNMENT)
        self._base = device.allocate(self._slab.size) if self._slab.size else 0

    @staticmethod
    def footprint(length: int) -> int:
        """Bytes that a segment of so many bytes takes."""
        return -(-length // _ALIGNMENT) * _ALIGNMENT

    def running(self) -> AbstractContextManager[object]:
        """While this is entered, what is resident stays where it is: for a run, until the device is done with it.

        One thread at a time may be in it, and must not wait for segments there: they may have to wait for it.
        """
        return self._still

    def place(self, segment: str) -> int:
        """The device address of a segment. As long as it is the same, and the segment resident, so are its tensors'.

        Raises:
            BackendError: it is not in the device's memory.
        """
        place = self._places.get(segment)
        if place is None:
            raise BackendError(f"arena: segment {segment} is not in the memory of {self._device.name}")
        return place

    def address(self, tensor: str) -> int:
        """The device address of a tensor, contiguous, of the dtype and shape that its spec says.

        It is for good only within :meth:`running`, and while the segment is held.

        Raises:
            BackendError: it is not in the device's memory.
        """
        segment = self._segment_of[tensor]
        return self.place(segment) + self._tensors[tensor].offset - self._segments[segment].offset

    def evict(self) -> None:
        super().evict()
        self._loader.submit(lambda: None).result()

    def close(self) -> None:
        """Wait for loading to end, and give the memory back. Idempotent."""
        super().close()
        self._places.clear()
        self._buffers.clear()
        if self._base:
            self._device.free(self._base)
            self._base = 0

    def _transfer(self, evict: Sequence[str], load: Sequence[str], *, at_once: bool) -> None:
        # Never on the caller's thread: a copy takes longer than a thread to wake up.
        super()._transfer(evict, load, at_once=False)

    def _load(self, segment: str) -> None:
        spec = self._segments[segment]
        place = self._slab.allocate(segment, spec.length)
        if place is None:
            self._compact()
            place = self._slab.allocate(segment, spec.length)
        assert place is not None, "more is to come than the budget allows"
        try:
            self._upload(self._base + place, self._bytes[spec.offset : spec.offset + spec.length])
        except BaseException:
            self._slab.free(segment)
            raise
        self._places[segment] = self._base + place
        # From here on its pages, and those that came with them, are only the page cache's.
        self._map.madvise(mmap.MADV_DONTNEED)

    def _drop(self, segment: str) -> None:
        self._places.pop(segment, None)
        # It has none if loading it failed.
        with suppress(KeyError):
            self._slab.free(segment)
        if self._loading.cold:
            spec = self._segments[segment]
            forget(self._path, spec.offset, blob.footprint(spec.length))

    def _upload(self, target: int, source: NDArray[np.uint8]) -> None:
        """Copy to an address; done on return."""
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
        """Make one piece of all the room. Nothing runs meanwhile."""
        with self._still:
            moves = self._slab.compact()
            for move in moves:
                # Nobody finds what could not be moved.
                del self._places[move.name]
            for move in moves:
                self._move(move)
            self._moved.record(self._stream)
            self._moved.synchronize()
            self._places.update((move.name, self._base + move.target) for move in moves)

    def _move(self, move: Move) -> None:
        """Copy towards the front. A device cannot where the two places overlap."""
        source, target, distance = self._base + move.source, self._base + move.target, move.source - move.target
        if distance >= min(move.length, _SHORT):
            for begin, size in _pieces(move.length, distance):
                self._device.move(target + begin, source + begin, size, self._stream)
        else:
            # By way of the machine: less bandwidth, but not a copy for every few bytes.
            buffer = self._buffers[0][0]
            for begin, size in _pieces(move.length, len(buffer)):
                self._device.download(buffer[:size], source + begin, self._stream)
                self._device.upload(target + begin, buffer[:size], self._stream)


def _pieces(length: int, most: int) -> Iterable[tuple[int, int]]:
    """Begin and size of each piece."""
    return ((begin, min(most, length - begin)) for begin in range(0, length, most))

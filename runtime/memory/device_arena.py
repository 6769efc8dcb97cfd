"""Device arena: segments of one blob in one allocation on a device.

The allocation is made once and never grows. A :class:`Slab` chooses the offset of each segment in the allocation.
Segments are read from the blob's file into two page-locked buffers: one is filled while the other is copied to the
device. On a device that reads the machine's own memory, they are copied from the mapped file. Kernels that are computed
from stored tensors are computed in this machine's memory, and copied from there. If free memory is split
into pieces that are too small for a segment, the arena moves its segments together between two runs.

The loader thread does all loads, evictions and moves, in the order of the requests. Only that thread uses the slab, the
stream and the buffers. Other threads read only the addresses of segments.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...bundles import blob
from ...bundles.form_specs import FormSpec
from ...bundles.forms import compute_kernel
from ...bundles.manifest import SegmentSpec, TensorSpec
from ...bundles.reader import view
from ...errors import BackendError
from ..device import Device
from .arena import Arena
from .guarded_file import GuardedFile
from .loading import WARM, Loading
from .mapped_blob import forget
from .slab import Move, Slab

__all__ = ["DeviceArena"]

_ALIGNMENT = 256
"""Alignment of every segment's device address, in bytes."""
_BUFFER = 4 << 20
"""Size of each of the two page-locked buffers, in bytes."""
_SHORT = 128 << 10
"""Size, in bytes, of a copy inside a device's memory that takes about as long as the call that requests it."""


class DeviceArena(Arena):
    """Segments of one blob in the memory of one device.

    Args:
        device: device that holds the segments. The caller closes the device, after this arena.
        path: file of the blob.
        tensors: tensor id -> offset, length, dtype and shape of the tensor in the blob.
        segments: segment -> offset, length and tensors of the segment in the blob.
        budget: maximum bytes that may be resident at once; enough for all segments when left out. The arena allocates
            this much at its creation, or less if all segments need less.
        loading: settings of how segments are loaded and evicted.
        forms: tensor id -> form, for kernels that are computed from tensors of the blob.
        computed: places of these kernels, in segments of other names than those of the blob.

    Raises:
        BackendError: the device has too little free memory.
    """

    # A copy to the device takes longer than waking the loader thread.
    _inline: ClassVar[bool] = False

    def __init__(
        self,
        device: Device,
        path: Path,
        tensors: Mapping[str, TensorSpec],
        segments: Mapping[str, SegmentSpec],
        budget: int | None = None,
        loading: Loading = WARM,
        forms: Mapping[str, FormSpec] | None = None,
        computed: blob.Layout | None = None,
    ) -> None:
        made = blob.Layout({}, {}, 0) if computed is None else computed
        self._tensors, self._segments = {**tensors, **made.tensors}, {**segments, **made.segments}
        super().__init__({name: self.footprint(spec.length) for name, spec in self._segments.items()}, budget, loading)
        self._device, self._file = device, GuardedFile(path)
        self._forms, self._computed = dict(forms or {}), made.segments
        self._segment_of = {tensor: name for name, spec in self._segments.items() for tensor in spec.tensors}
        self._map: mmap.mmap | None = None
        """Mapping of the blob's file, if the device reads the machine's own memory; otherwise None."""
        if device.unified and self._file.guarded:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._stream, self._moved = device.stream(), device.event()
        self._buffers = deque((device.pinned(_BUFFER), device.event()) for _ in range(2))
        self._still = Lock()
        self._places: dict[str, int] = {}
        # Sizes are whole units of the slab: segments that fit the budget fit the slab.
        self._slab = Slab(min(self.budget, sum(self.sizes.values())), _ALIGNMENT)
        self._base = device.allocate(self._slab.size) if self._slab.size else 0

    @staticmethod
    def footprint(length: int) -> int:
        """Return the bytes of device memory that a segment of ``length`` bytes takes, alignment included."""
        return -(-length // _ALIGNMENT) * _ALIGNMENT

    def running(self) -> AbstractContextManager[object]:
        """Return a context manager inside which no resident segment changes its address.

        A run stays inside until the device has finished. Only one thread at a time may be inside. That thread must not
        wait for segments there, because the loader may be waiting for the thread to leave.
        """
        return self._still

    def place(self, segment: str) -> int:
        """Return the device address of a segment. The addresses of its tensors change only when this address does.

        Raises:
            BackendError: the segment is not in the device's memory.
        """
        place = self._places.get(segment)
        if place is None:
            raise BackendError(f"arena: segment {segment} is not in the memory of {self._device.name}")
        return place

    def address(self, tensor: str) -> int:
        """Return the device address of a tensor, which is contiguous there and has the dtype and shape of its spec.

        The address is valid only inside :meth:`running`, and while a model holds the tensor's segment.

        Raises:
            BackendError: the tensor is not in the device's memory.
        """
        segment = self._segment_of[tensor]
        return self.place(segment) + self._tensors[tensor].offset - self._segments[segment].offset

    def evict(self) -> None:
        super().evict()
        self._loader.submit(lambda: None).result()

    def close(self) -> None:
        """Wait for all requested loads to end, and free the device memory. Idempotent."""
        super().close()
        self._places.clear()
        self._buffers.clear()
        if self._base:
            self._device.free(self._base)
            self._base = 0
        self._file.close()

    def _kept(self, segment: str) -> bool:
        return segment in self._places

    def _load(self, segment: str) -> None:
        spec = self._segments[segment]
        place = self._slab.allocate(segment, spec.length)
        if place is None:
            self._compact()
            place = self._slab.allocate(segment, spec.length)
        assert place is not None, "the segments to be loaded are larger than the budget"
        data = self._compute(spec) if segment in self._computed else None
        self._upload(self._base + place, spec.offset, spec.length, data)
        self._places[segment] = self._base + place
        if self._map is not None:
            # The device has a copy now. Unmapped, the pages count as page cache, which the system may take back.
            self._map.madvise(mmap.MADV_DONTNEED)

    def _drop(self, segment: str) -> None:
        self._places.pop(segment, None)
        # A segment whose load failed may have no memory in the slab.
        with suppress(KeyError):
            self._slab.free(segment)
        if self._loading.cold and segment not in self._computed:
            spec = self._segments[segment]
            forget(self._file.path, spec.offset, blob.footprint(spec.length))

    def _compute(self, spec: SegmentSpec) -> NDArray[np.uint8]:
        """Return the bytes of a segment of kernels, computed from tensors in the blob's file."""

        def read(tensor: str) -> NDArray[Any]:
            stored = self._tensors[tensor]
            found = np.empty(stored.length, np.uint8)
            self._file.read(found, stored.offset)
            return view(found, stored, at=0)

        data = np.zeros(spec.length, np.uint8)
        for tensor in spec.tensors:
            place = self._tensors[tensor]
            compute_kernel(self._forms[tensor], read, view(data, place, at=place.offset - spec.offset))
        return data

    def _upload(self, target: int, offset: int, length: int, data: NDArray[np.uint8] | None) -> None:
        """Copy ``data``, or bytes of the blob's file if None, to a device address, and wait until the copy is done."""
        for begin, size in _pieces(length, _BUFFER):
            buffer, sent = self._buffers[0]
            piece: NDArray[np.uint8]
            self._buffers.rotate()
            if data is not None:
                sent.synchronize()
                piece = buffer[:size]
                piece[:] = data[begin : begin + size]
            elif self._map is None:
                sent.synchronize()
                piece = buffer[:size]
                self._file.read(piece, offset + begin)
            else:
                self._file.check()
                piece = np.frombuffer(self._map, np.uint8, size, offset + begin)
            self._device.upload(target + begin, piece, self._stream)
            sent.record(self._stream)
        for _, sent in self._buffers:
            sent.synchronize()

    def _compact(self) -> None:
        """Move all segments to the front, so that the free memory is one piece. No model runs meanwhile.

        If a move fails, the contents of every segment that was to be moved are unknown. Those segments then count as
        not in memory, and are loaded again when a model acquires them.
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
        """Copy a segment to a lower address, in pieces: a device cannot copy between ranges that overlap."""
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
    """Return the (begin, size) pairs that split ``length`` bytes into pieces of at most ``most`` bytes."""
    return ((begin, min(most, length - begin)) for begin in range(0, length, most))

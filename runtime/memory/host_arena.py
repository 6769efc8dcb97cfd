"""Host arena: segments of a blob that is mapped into this process.

A CPU reads weights where they are mapped, so nothing is copied. Making a segment resident populates its pages
(``MADV_POPULATE_READ``); evicting the segment drops its pages (``MADV_DONTNEED``). Addresses never change, so weights
that are bound to a program stay bound as long as the arena exists. If the blob cannot be guarded from other programs
that write to it (:mod:`.guarded_file`), segments are read into memory of this process at the same addresses instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.blob import HUGE_PAGE, footprint
from ...bundles.manifest import SegmentSpec, TensorSpec
from ...bundles.reader import view
from ...errors import BackendError
from .arena import WARM, Arena, Loading
from .guarded_file import GuardedFile, map_at

__all__ = ["HostArena", "forget"]

_MAP_NORESERVE = 0x4000  # Python's mmap module has no name for it before 3.13
_MADV_POPULATE_READ = 22  # Linux 5.14; Python's mmap module has no name for it
# mmap.madvise holds the interpreter's lock while pages are read from a disk, so that no other thread would run.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class HostArena(Arena):
    """Segments of one blob, mapped into this process.

    Args:
        path: file of the blob, which is mapped read-only.
        tensors: tensor id -> offset, length, dtype and shape of the tensor in the blob.
        segments: segment -> offset, length and tensors of the segment in the blob.
        budget: maximum bytes that may be resident at once; enough for all segments when left out.
        loading: settings of how segments are loaded and evicted.

    Raises:
        BackendError: the kernel refuses to map the blob.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, TensorSpec],
        segments: Mapping[str, SegmentSpec],
        budget: int | None = None,
        loading: Loading = WARM,
    ) -> None:
        super().__init__({name: footprint(spec.length) for name, spec in segments.items()}, budget, loading)
        self._tensors, self._segments = tensors, segments
        self.file = GuardedFile(path)
        """File of the blob."""
        # Writable only for the arena itself, which fills it with segments that are not mapped.
        self._writable = _reserved(path.stat().st_size)
        self._bytes = self._writable.view()
        self._bytes.flags.writeable = False
        if self.file.guarded:
            _map_segments(self.file, self._bytes, segments.values())
        # Pages read from disk through such a mapping are 2 MiB large: populating 104 MB from the page cache takes
        # 0.02 ms instead of 0.49 ms (Linux 6.18, ext4). Kernels that cannot do it keep small pages. Segments smaller
        # than a large page would share one with others.
        for spec in segments.values():
            if spec.length >= HUGE_PAGE:
                self._advise(spec, mmap.MADV_HUGEPAGE)

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a view of a tensor at its address in the arena.

        The view stays valid when the tensor's segment is evicted, but reading the view is then slow.
        """
        return view(self._bytes, self._tensors[name])

    def acquire(self, segments: Iterable[str]) -> None:
        self.file.check()
        super().acquire(segments)

    def close(self) -> None:
        super().close()
        self.file.close()

    def _load(self, segment: str) -> None:
        spec = self._segments[segment]
        end = spec.offset + spec.length
        if not self.file.guarded:
            self.file.read(self._writable[spec.offset : end], spec.offset)
        elif not self._advise(spec, _MADV_POPULATE_READ):
            if (number := ctypes.get_errno()) != errno.EINVAL:
                # Touching the pages would end the process.
                raise BackendError(f"{self.file.path}: segment {segment} cannot be read: {os.strerror(number)}")
            # Kernels before 5.14 do not know the advice. Reading one byte per page populates pages too, more slowly.
            # First the pages are read in a way that reports errors of the disk.
            self.file.read(np.empty(spec.length, np.uint8), spec.offset)
            int(self._bytes[spec.offset : end : mmap.PAGESIZE].sum())

    def _drop(self, segment: str) -> None:
        spec = self._segments[segment]
        self._advise(spec, mmap.MADV_DONTNEED)
        if self._loading.cold:
            forget(self.file.path, spec.offset, footprint(spec.length))

    def _advise(self, spec: SegmentSpec, advice: int) -> bool:
        """Give the kernel advice on a segment's pages (``madvise``), and return whether the kernel accepted it."""
        address = self._bytes.ctypes.data + spec.offset
        return spec.length == 0 or _libc.madvise(address, spec.length, advice) == 0


def _reserved(size: int) -> NDArray[np.uint8]:
    """Return an array of addresses for a file of ``size`` bytes. It takes memory only where it is written to.

    The array begins at a multiple of 2 MiB, as large segments do in the file; otherwise the segments could not have
    large pages.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    place = np.frombuffer(mmap.mmap(-1, size + HUGE_PAGE, flags=flags), np.uint8)
    return place[-place.ctypes.data % HUGE_PAGE :][:size]


def _map_segments(file: GuardedFile, place: NDArray[np.uint8], segments: Iterable[SegmentSpec]) -> None:
    """Map each segment of a file by itself, read-only, so that it lies in the array at its offset in the file.

    The gaps between segments are not mapped to the file. When a page is read, Linux also maps the pages around it:
    64 KiB, and from Linux 6.18 on the whole piece that was read, but never beyond the end of a mapping. With one
    mapping per segment, no page of another segment comes into memory.

    Raises:
        BackendError: the kernel refuses to map a segment.
    """
    for spec in segments:
        if spec.length:
            address, length = place.ctypes.data + spec.offset, footprint(spec.length)
            try:
                map_at(address, length, file.fileno(), spec.offset, mmap.PROT_READ, mmap.MAP_SHARED)
            except OSError as error:
                raise BackendError(f"{file.path}: cannot be mapped: {error.strerror}") from error


def forget(path: Path, offset: int, length: int) -> None:
    """Drop ``length`` bytes of a file from the page cache, except for pages that a process has mapped."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)

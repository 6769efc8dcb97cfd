"""File of weights that other programs may overwrite or shorten while this process reads or maps it.

A page that is mapped from a file is lost when the file is shortened, and touching the page kills the process (SIGBUS).
Reading all weights into memory of the process's own would be safe, but it makes a swap-in 8 to 200 times slower than
mapping pages that are in the page cache (``tools/bench_loads.py``), and the system cannot take such memory back. So the
file is mapped, under a read *lease* (``F_SETLEASE`` in fcntl(2)): the kernel lets whoever opens the file for writing
wait until the lease is given back, for up to 45 seconds. In that time this process copies the file to one that has no
name, which nobody else can open, moves its mappings to the copy, and goes on.

The kernel gives leases to the owner of a file, and on most local file systems. Without a lease, nothing is mapped:
weights are read into memory of the process's own at each swap-in.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from ...errors import BackendError

__all__ = ["GuardedFile", "map_at"]

_log = logging.getLogger(__name__)

_POLL_S = 0.25
"""Seconds between two checks whether a program waits to write to a weights file; it may wait this long."""
_CHUNK = 4 << 20
"""Bytes of a weights file that are copied at once."""
_MAP_FIXED = 0x10  # Python's mmap module has no name for it
_SETSIG = 10  # Python's fcntl module has no name for it before 3.13
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.mmap.restype = ctypes.c_void_p


class _Mapping(NamedTuple):
    """Range of this process's memory that is mapped from a file."""

    address: int
    length: int
    protection: int
    flags: int
    offset: int


class GuardedFile:
    """File that is open for reading, whose content stays as it was at opening, as far as this process can see.

    Args:
        path: a plain file.

    Attributes:
        path: path that the file was opened with.
        guarded: whether the file may be mapped: this process gets to know of writers before they write.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("rb")
        self._state = _state(self._file)
        self._lost = ""
        """Reason why the guarded file's content is lost; empty if it is not."""
        self._copied = False
        """Whether this process reads a copy of the guarded file, which has no name, instead of the file."""
        self._closed = Event()
        self.guarded = self._take_lease()
        if self.guarded:
            Thread(target=_watch, args=(weakref.ref(self), self._closed), name="gemel-lease", daemon=True).start()

    def fileno(self) -> int:
        """Return the descriptor of the guarded file, or of its copy."""
        return self._file.fileno()

    @property
    def lost(self) -> bool:
        """Whether the guarded file's content is lost, because a program has overwritten it before it was copied."""
        return bool(self._lost)

    @property
    def overwritten(self) -> bool:
        """Whether another program has written to the guarded file since it was opened, or is about to."""
        return self._copied or bool(self._lost)

    def check(self) -> None:
        """Check that the content of the guarded file, or of its copy, is as it was at opening.

        Raises:
            BackendError: another program has overwritten the file.
        """
        # A lease that is about to end is the business of the thread that watches it; until then, no byte has changed.
        if not self._lost and not self._copied and _state(self._file) != self._state:
            self._lost = "another program has overwritten it during the run"
        if self._lost:
            raise BackendError(f"{self.path}: {self._lost}; restart gemel, which makes a device cache again")

    def read(self, buffer: NDArray[np.uint8], offset: int) -> None:
        """Fill a buffer with the guarded file's bytes from ``offset`` on.

        Raises:
            BackendError: the file ends before, the disk cannot be read, or another program has overwritten the file.
        """
        done, whole = 0, buffer.data
        while done < len(buffer):
            try:
                count = os.preadv(self.fileno(), [whole[done:]], offset + done)
            except OSError as error:
                raise BackendError(f"{self.path}: cannot be read: {error.strerror}") from error
            if not count:
                break
            done += count
        self.check()
        if done < len(buffer):
            raise BackendError(f"{self.path}: ends after {offset + done} bytes; it was shortened")

    def take_mappings(self) -> None:
        """Replace this process's mappings of the file, which a library made, by memory of the process's own."""
        descriptor = os.memfd_create("gemel-weights", os.MFD_CLOEXEC)
        try:
            for each in _mappings(self._file, self.path):
                data = np.empty(each.length, np.uint8)
                length = max(0, min(each.length, self._state[0] - each.offset))
                self.read(data[:length], each.offset)
                os.pwrite(descriptor, data[:length].data, each.offset)
                map_at(each.address, each.length, descriptor, each.offset, each.protection, each.flags)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Give back the lease, which tells of writers, and close the file. Mappings stay, unprotected."""
        self._closed.set()
        self._file.close()

    def _take_lease(self) -> bool:
        """Take a lease on the file, which tells of writers before they write; return False if the kernel gives none."""
        try:
            # The kernel tells of a writer with a signal; the default, SIGIO, would end this process. SIGURG is ignored.
            fcntl.fcntl(self._file, _SETSIG, signal.SIGURG)
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            why = "another user owns the file" if isinstance(error, PermissionError) else error.strerror
            _log.info("%s: is read at each swap-in and not mapped, because there is no lease on it: %s", self.path, why)
            return False
        return True

    def _watched(self) -> bool:
        """Check whether a program wants to write to the file; if so, move to a copy. Return whether to check again."""
        try:
            if fcntl.fcntl(self._file, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
                return True
        except (OSError, ValueError):  # the file was closed
            return False
        self._leave()
        return False

    def _leave(self) -> None:
        """Move all mappings of this process to a copy of the file, and give back the lease, so that writers go on."""
        original = self._file
        try:
            copy = self._copy()
            while found := list(_mappings(original, self.path)):
                for each in found:
                    map_at(each.address, each.length, copy.fileno(), each.offset, each.protection, each.flags)
        except OSError as error:
            # Without the copy, pages must not be touched once the writer goes on. The lease is kept until the kernel
            # ends it, so that a run that has begun comes to its end.
            self._lost = f"another program writes to it, and it cannot be copied: {error.strerror or error}"
            _log.error("%s: %s; queries fail until gemel is restarted", self.path, self._lost)
            return
        self._copied, self._file = True, copy
        _log.warning("%s: another program writes to it; the run goes on with a copy until it ends", self.path)
        original.close()

    def _copy(self) -> BinaryIO:
        """Return a copy of the file that has no name, so that no other program can open it.

        Raises:
            OSError: no folder has room for the copy, or the file was changed while it was copied.
        """
        failure = OSError("no folder can be written")
        for folder in (self.path.parent, user_cache_path("gemel"), Path("/var/tmp")):
            try:
                copy = os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b")
            except OSError as error:
                failure = error
                continue
            try:
                offset = 0
                while chunk := os.pread(self.fileno(), _CHUNK, offset):
                    copy.write(chunk)
                    offset += len(chunk)
                copy.flush()
            except OSError as error:
                copy.close()
                failure = error
                continue
            if _state(self._file) != self._state:
                copy.close()
                raise OSError("it was changed before the copy was complete")
            return copy
        raise failure


def _watch(reference: weakref.ref[GuardedFile], closed: Event) -> None:
    """Watch for writers to a guarded file until it is closed or left. The thread does not keep the object alive."""
    while not closed.wait(_POLL_S):
        file = reference()
        if file is None or not file._watched():
            return
        del file


def map_at(address: int, length: int, descriptor: int, offset: int, protection: int, flags: int) -> None:
    """Map a part of a file at an address, in place of what is mapped there. Other threads may be reading there.

    Raises:
        OSError: the kernel refuses to map the file.
    """
    if _libc.mmap(address, length, protection, flags | _MAP_FIXED, descriptor, offset) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _state(file: BinaryIO) -> tuple[int, int]:
    """Return size and time of a file's content. They change when it is written to, and not when it is deleted."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _mappings(file: BinaryIO, path: Path) -> Iterator[_Mapping]:
    """Yield the ranges of this process's memory that are mapped from a file."""
    inode = str(os.fstat(file.fileno()).st_ino)
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        parts = line.split(maxsplit=5)
        # The device's number in this list is another than that of stat() on some file systems.
        if len(parts) < 6 or parts[4] != inode or Path(parts[5].removesuffix(" (deleted)")).name != path.name:
            continue
        begin, end = (int(each, 16) for each in parts[0].split("-"))
        protection = sum(
            bit
            for letter, bit in (("r", mmap.PROT_READ), ("w", mmap.PROT_WRITE), ("x", mmap.PROT_EXEC))
            if letter in parts[1]
        )
        flags = mmap.MAP_SHARED if parts[1].endswith("s") else mmap.MAP_PRIVATE
        yield _Mapping(begin, end - begin, protection, flags, int(parts[2], 16))

"""File that is appended to by one run at a time, and that is renamed and begun anew when it is large or old."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from time import time

from ...bundles.output_specs import RotateSpec
from ...errors import InputError
from .run_info import utc_stamp

__all__ = ["PartedFile"]

_log = logging.getLogger(__name__)

_TAIL_BYTES = 16 << 20
"""Number of bytes at the end of a file in which to look for the beginning of an unfinished line."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
"""Error numbers (errno) of file systems that have no locks."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EACCES)
"""Error numbers (errno) of file systems that have no hard links."""
_STAMP = r"-\d{8}T\d{6}\.\d{3}Z"


class PartedFile:
    """File of whole lines. Old parts lie beside it: ``results-20261127T222214.500Z.jsonl`` beside ``results.jsonl``.

    The file is locked as long as it is open, so that two runs never write to it at once. If a run was killed in the
    middle of a line, the next one removes the unfinished line. Pipes and devices are not locked, mended or renamed.

    Args:
        path: file to append to; created with its folder if missing.
        rotate: when to begin a new part, and how many parts to keep.
        removed: function that is called with an old part before it is deleted.
    """

    def __init__(self, path: Path, rotate: RotateSpec, removed: Callable[[Path], None] = lambda part: None) -> None:
        self._path, self._rotate, self._removed = path, rotate, removed
        self._parts = re.compile(f"{re.escape(path.stem)}{_STAMP}{re.escape(path.suffix)}")
        self._fd: int | None = None
        self._identity: tuple[int, int] | None = None
        """Device and inode of the open file of lines; None for pipes and devices."""
        self._size, self._born, self._last_part = 0, 0.0, 0.0

    def open(self) -> None:
        """Open and lock the file of lines, unless it is open.

        Raises:
            InputError: another run writes to the file.
            OSError: the file cannot be opened.
        """
        if self._fd is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            # A pipe is opened for writing alone: opened for reading, too, it would always have a reader. Without
            # O_NONBLOCK, opening would wait for a reader.
            special = self._path.exists() and not self._path.is_file()
            how = os.O_WRONLY | os.O_NONBLOCK if special else os.O_RDWR | os.O_CREAT
            fd = os.open(self._path, how | os.O_APPEND, 0o644)
            try:
                if self._adopt(fd):
                    return
            except BaseException:
                os.close(fd)
                raise
            # The file was renamed by another run's rotation before it was locked here.
            os.close(fd)

    def write(self, data: bytes) -> None:
        """Append whole lines to the file; begin a new part before if the present part would be too large or is too old.

        Raises:
            InputError: another run writes to the file.
            OSError: the data could not be written; nothing of it is in the file.
        """
        try:
            if self._fd is not None and self._identity is not None and not self._in_place():
                self.close()
            self.open()
            if self._is_due(len(data)):
                self._begin_part()
            self._append(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                # A disk that was away may come back as another one.
                self.close()
            raise OSError(error.errno, error.strerror or str(error), str(self._path)) from error

    def close(self) -> None:
        """Close and unlock the file of lines."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _adopt(self, fd: int) -> bool:
        """Lock an open file and make it the present part of the file of lines; return False if it was moved away."""
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            self._lock(fd)
            self._identity = found.st_dev, found.st_ino
            if not self._in_place():
                return False
            self._mend(fd)
            found = os.fstat(fd)
            self._born = _first_time(fd) or (found.st_mtime if found.st_size else time())
            self._size = found.st_size
            self._prune()
        else:
            self._identity = None
            os.set_blocking(fd, True)
        self._fd = fd
        return True

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{self._path}: another run writes results to this file; give each run a file of its own"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning("%s: the file system has no locks; let no other run write to this file", self._path)

    def _in_place(self) -> bool:
        """Return whether the file at the path of the file of lines is still the open file."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _mend(self, fd: int) -> None:
        """Remove the unfinished line at the end of the file, which a crash in the middle of a write leaves."""
        size = os.fstat(fd).st_size
        if not size or os.pread(fd, 1, size - 1) == b"\n":
            return
        start = max(0, size - _TAIL_BYTES)
        tail = os.pread(fd, size - start, start)
        end = tail.rfind(b"\n") + 1
        if tail[end:].startswith(b'{"schema"'):
            os.ftruncate(fd, start + end)
        else:
            # Not a line of results: the file may hold something else, which is left alone.
            os.write(fd, b"\n")

    def _is_due(self, more: int) -> bool:
        """Return whether a new part of the file of lines begins before ``more`` bytes are written."""
        if self._identity is None or not self._size:
            return False
        size, age = self._rotate.size, self._rotate.age
        # An age below zero is a clock that was set back; the part then stays until it is old by the new clock.
        return (size is not None and self._size + more > size) or (age is not None and time() - self._born >= age)

    def _begin_part(self) -> None:
        """Rename the file of lines to an old part, and open a new one in its place."""
        # Later than the part before, although that may have been deleted: parts are sorted by name.
        moment = max(time(), self._last_part + 0.001)
        while (old := self._path.with_name(f"{self._path.stem}-{utc_stamp(moment)}{self._path.suffix}")).exists():
            moment += 0.001
        new = self._path.with_name(f".{self._path.name}.new")
        fd = os.open(new, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            self._lock(fd)
            # The name always belongs to a locked file: no other run can take it in between.
            try:
                os.link(self._path, old)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._path.rename(old)
            new.rename(self._path)
            self._last_part = moment
            self.close()
            if not self._adopt(fd):
                raise OSError(errno.ESTALE, "was replaced while a new part was begun")
        except BaseException:
            os.close(fd)
            raise

    def _append(self, data: bytes) -> None:
        """Write all data to the file of lines; after an error, cut the file to its former length."""
        assert self._fd is not None
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            if self._identity is not None:
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def _prune(self) -> None:
        """Delete the oldest old parts of the file of lines if there are more than the settings keep."""
        if self._rotate.keep is None:
            return
        names = sorted(name for name in os.listdir(self._path.parent) if self._parts.fullmatch(name))  # noqa: PTH208
        for name in names[: max(0, len(names) - self._rotate.keep)]:
            part = self._path.with_name(name)
            try:
                self._removed(part)
                part.unlink()
            except OSError as error:
                _log.warning("%s: cannot be deleted: %s", part, error.strerror)


def _first_time(fd: int) -> float | None:
    """Return the wall-clock time in the first line of a file of results; None if there is none."""
    line = os.pread(fd, 1 << 16, 0).partition(b"\n")[0]
    # Enough of the line for its first fields, which are short; the result may be longer than what was read.
    match = re.match(rb'\{"schema": "[^"]*", "run": "[^"]*", "at": ([0-9.]+)[,}]', line)
    return float(match[1]) if match else None

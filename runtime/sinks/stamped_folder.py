"""Folder of files that are named after the time of their end, and whose oldest are deleted to save space."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from pathlib import Path

from ...locks import try_lock
from .run_info import utc_stamp

__all__ = ["StampedFolder", "put_whole"]

_log = logging.getLogger(__name__)

_MOST_NAME = 120
"""Maximum number of characters of a file name before the time stamp; file systems allow 255 bytes in all."""


class StampedFolder:
    """Folder of files ``<name>-<time in UTC><suffix>``, and of files ``<name><suffix>`` that are being written.

    Other files in the folder are left alone.

    Args:
        folder: folder, which is created when the first file is.
        suffix: suffix of the files, such as ``.mp4``.
        most_bytes: bytes of finished files above which the oldest are deleted; no limit if None.
    """

    def __init__(self, folder: Path, suffix: str, most_bytes: int | None) -> None:
        self.folder, self._suffix, self._most = folder, suffix, most_bytes
        self._pattern = re.compile(rf".+-(\d{{8}}T\d{{6}}\.\d{{3}}Z){re.escape(suffix)}")

    def new(self, name: str, at: float) -> Path:
        """Create an empty file with a time stamp, and return its path.

        Args:
            name: beginning of the file name, such as a feed's name; characters that file systems may refuse are
            replaced.
            at: time of the file in Unix seconds. If there is a file of this millisecond, a later one is taken.

        Raises:
            OSError: the file cannot be created.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = self._stamped(name, at)
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            except FileExistsError:
                at += 0.001
            else:
                return path

    def begin(self, name: str) -> tuple[Path, int]:
        """Create the file ``<name><suffix>`` and lock it. A file of that name is renamed first.

        Args:
            name: beginning of the file name, such as a feed's name; characters that file systems may refuse are
                replaced.

        Returns:
            The path, and a file descriptor that holds the lock.

        Raises:
            OSError: the file cannot be created, or another run writes to it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{_safe(name)}{self._suffix}"
        if path.is_symlink():
            raise OSError(errno.EEXIST, "is a link, which is not written to", str(path))
        if path.exists():
            # Left by a run that was killed, or by an earlier run.
            old = os.open(path, os.O_RDONLY)
            try:
                _lock(old, path)
                self.end(name)
            finally:
                os.close(old)
        lock = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _lock(lock, path)
        except BaseException:
            os.close(lock)
            raise
        return path, lock

    def end(self, name: str) -> None:
        """Rename the file ``<name><suffix>`` after the time of its last change; delete it if it is empty.

        Raises:
            OSError: the file cannot be renamed.
        """
        path = self.folder / f"{_safe(name)}{self._suffix}"
        found = path.stat()
        if not found.st_size:
            path.unlink()
            return
        at = found.st_mtime
        while (stamped := self._stamped(name, at)).exists():
            at += 0.001
        path.rename(stamped)

    def prune(self) -> None:
        """Delete the folder's oldest finished files as long as all of them together are larger than allowed."""
        if self._most is None or not self.folder.is_dir():
            return
        with os.scandir(self.folder) as entries:
            found = [
                (match[1], entry.stat().st_size, Path(entry.path))
                for entry in entries
                if (match := self._pattern.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False)
            ]
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._most:
                return
            try:
                path.unlink()
                total -= size
            except OSError as error:
                _log.warning("%s: cannot be deleted: %s", path, error.strerror)

    def _stamped(self, name: str, at: float) -> Path:
        return self.folder / f"{_safe(name)}-{utc_stamp(at)}{self._suffix}"


def put_whole(path: Path, data: bytes) -> None:
    """Write a file, which gets its name when it is whole, so that nobody sees half of it.

    Unlike :func:`gemel.durable.write_whole`, do not wait for the disk, nor read the folder: there are many such files,
    and a power cut may cost the last of them.

    Raises:
        OSError: the file cannot be written; no unfinished file is left.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _safe(name: str) -> str:
    """Return a name that is safe in a file name: names in a bundle from elsewhere must not lead out of the folder."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".")[:_MOST_NAME] or "_"


def _lock(fd: int, path: Path) -> None:
    """Lock an open file, on file systems that have locks.

    Raises:
        OSError: another run writes to the file.
    """
    if not try_lock(fd):
        raise OSError(errno.EAGAIN, "another run writes to this file", str(path))

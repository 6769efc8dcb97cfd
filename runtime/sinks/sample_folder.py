"""Folder of samples on the box, limited in bytes and age: the oldest samples are deleted first."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import time

from .run_info import utc_stamp
from .sample_record import PICTURE_SUFFIX, RECORD_SUFFIX
from .stamped_folder import StampedFolder, put_whole

__all__ = ["SampleFolder"]

_log = logging.getLogger(__name__)

_NAME = re.compile(
    rf"(.+-(\d{{8}}T\d{{6}}\.\d{{3}})Z)({re.escape(PICTURE_SUFFIX)}|{re.escape(RECORD_SUFFIX)})", re.DOTALL
)
_PART = re.compile(rf"\.{_NAME.pattern}\.part", re.DOTALL)
_PART_S = 3600.0
"""Age in seconds from which an unfinished file counts as left behind by a kill."""
_LOOK_EVERY = 100
"""Number of written samples after which the folder is looked at again, because other programs may delete samples."""


@dataclass(slots=True)
class _Pair:
    """Sizes of the two files of a sample, and the time in their names."""

    at: str
    bytes: int = 0


class SampleFolder:
    """Folder of pairs ``<feed>-<time>.jpg`` and ``<feed>-<time>.json``. Other files in it are left alone.

    Args:
        folder: folder, which is created when the first sample is written.
        most_bytes: bytes of samples above which the oldest are deleted; no limit if None.
        most_age: seconds after which a sample is deleted, by the time in its name; never if None.
    """

    def __init__(self, folder: Path, most_bytes: int | None, most_age: float | None) -> None:
        self.folder, self._most, self._age = folder, most_bytes, most_age
        self._names = StampedFolder(folder, PICTURE_SUFFIX, None)
        self._bytes = 0
        """Bytes of all samples when the folder was looked at, and of those written since: never less than there are."""
        self._left = 0
        """Number of samples that may be written before the folder is looked at again."""

    def write(self, name: str, at: float, picture: bytes, record: Callable[[str], bytes]) -> None:
        """Write a sample, each of its files in one step, the record last.

        Args:
            name: beginning of the file names, such as a feed's name.
            at: time of the sample in Unix seconds. If there is a sample of this millisecond, a later one is taken.
            picture: content of the JPEG file.
            record: function that returns the content of the JSON file, given the name of the JPEG file.

        Raises:
            ValueError: the sample alone is larger than all samples together may be.
            OSError: the sample cannot be written. Nothing of it is left.
        """
        path = self._names.new(name, at)
        beside = path.with_suffix(RECORD_SUFFIX)
        try:
            content = record(path.name)
            size = len(picture) + len(content)
            if self._most is not None and size > self._most:
                raise ValueError(f"a sample of {size} bytes is larger than all samples together may be, {self._most}")
            self._make_room(size)
            put_whole(path, picture)
            put_whole(beside, content)
        except BaseException:
            for each in (beside, path):
                _remove(each)
            raise

    def prune(self, room: int = 0) -> None:
        """Delete samples that are too old, and then the oldest, until ``room`` more bytes fit in the folder."""
        pairs = self._pairs()
        self._bytes = sum(pair.bytes for pair in pairs.values())
        self._left = _LOOK_EVERY
        oldest = None if self._age is None else utc_stamp(time() - self._age)
        for stem, pair in sorted(pairs.items(), key=lambda item: (item[1].at, item[0])):
            too_old = oldest is not None and pair.at < oldest
            if not too_old and (self._most is None or self._bytes + room <= self._most):
                return
            try:
                self.remove(self.folder / f"{stem}{RECORD_SUFFIX}")
            except OSError as error:
                _log.warning("%s: cannot be deleted: %s", error.filename, error.strerror)
            else:
                self._bytes -= pair.bytes

    def records(self) -> list[Path]:
        """Return the paths of all records in the folder, the oldest first.

        Raises:
            OSError: the folder cannot be listed.
        """
        if not self.folder.is_dir():
            return []
        found = [match for name in os.listdir(self.folder) if (match := _NAME.fullmatch(name))]  # noqa: PTH208
        found = sorted((match for match in found if match[3] == RECORD_SUFFIX), key=lambda match: (match[2], match[0]))
        return [self.folder / match[0] for match in found]

    def remove(self, record: Path) -> None:
        """Delete both files of a sample, the record first.

        Raises:
            OSError: a file cannot be deleted.
        """
        # A record without its picture would be a damaged sample.
        record.unlink(missing_ok=True)
        record.with_suffix(PICTURE_SUFFIX).unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Delete old samples so that ``size`` more bytes fit, if they may be needed; the folder is rarely read."""
        if self._left <= 0 or (self._most is not None and self._bytes + size > self._most):
            # Room for more than one sample, so that a full folder is not read for each of them.
            spare = 0 if self._most is None else min(self._most // 20, self._most - size)
            self.prune(size + spare)
        self._left -= 1
        self._bytes += size

    def _pairs(self) -> dict[str, _Pair]:
        """Return stem -> time and bytes of each sample in the folder, and remove what a kill has left unfinished."""
        pairs: dict[str, _Pair] = {}
        if not self.folder.is_dir():
            return pairs
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if not entry.is_file(follow_symlinks=False):
                        continue
                    found = entry.stat(follow_symlinks=False)
                    if match := _NAME.fullmatch(entry.name):
                        pairs.setdefault(match[1], _Pair(match[2])).bytes += found.st_size
                    elif _PART.fullmatch(entry.name) and time() - found.st_mtime > _PART_S:
                        _remove(Path(entry.path))
        return pairs


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()

"""Writer of results as JSON lines, to a file or to the standard output."""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ...bundles.output_specs import RotateSpec
from .events import SinkEvent, event_lines
from .parts import PartedFile
from .writer import Writer

__all__ = ["JsonlWriter", "StdoutWriter"]

_log = logging.getLogger(__name__)

_MOST_NAME = 100
"""Maximum number of characters that a file name takes from a query's or an output's name; file systems allow 255."""
_LINGER_S = 0.5
"""Maximum seconds that a line of results waits, so that several are written at once. A kill loses waiting lines."""
_BATCH = 256
"""Maximum number of lines of results that are written at once."""


class JsonlWriter(Writer):
    """Writer that appends results to a file of JSON lines; only whole lines are ever in the file.

    Raw outputs with many values go to files of their own, ``<run>-<query>-<frame>-<number>-<output>.npy`` in the folder
    ``<name of the results file>-raw`` beside the file of results. A line has the paths of its raw outputs, relative to
    the folder of the file of results. They are deleted together with the old part of the file that has the line.

    Args:
        path: file of results.
        rotate: when a new part of the file is begun, and how many old parts are kept.

    Raises:
        InputError: another run writes to the file.
    """

    batch, linger = _BATCH, _LINGER_S

    def __init__(self, path: Path, rotate: RotateSpec) -> None:
        self._raw = path.with_name(f"{path.stem}-raw")
        self._file = PartedFile(path, rotate, self._remove_arrays)
        try:
            self._file.open()
        except OSError as error:
            # The disk may be mounted later, so the first write tries again.
            _log.debug("%s: not yet: %s", path, error)

    def write(self, batch: deque[SinkEvent]) -> None:
        lines = event_lines(batch, lambda event: event.line(_Arrays(self._raw, event).save))
        self._file.write(b"".join(lines))
        for _ in lines:
            batch.popleft()

    def close(self) -> None:
        self._file.close()

    def _remove_arrays(self, part: Path) -> None:
        """Delete the files of raw outputs that the lines of an old part of the file of results name."""
        if not self._raw.is_dir():
            return
        name = re.escape(self._raw.name).encode()
        with part.open("rb") as file:
            for line in file:
                for array in re.findall(rb'"file": "' + name + rb'/([^"/]+\.npy)"', line):
                    self._raw.joinpath(os.fsdecode(array)).unlink(missing_ok=True)


class StdoutWriter(Writer):
    """Writer of results as JSON lines to the standard output. A reader that stops reading does not hold up the run."""

    batch, linger = _BATCH, _LINGER_S

    def __init__(self) -> None:
        self._fd = os.dup(1)
        self._rest = b""
        """Rest of a line of results that an error left half written, to be written first; empty if there is none."""

    def write(self, batch: deque[SinkEvent]) -> None:
        lines = deque(event_lines(batch))
        if self._rest:
            lines[0] = self._rest
        view = memoryview(b"".join(lines))
        written = 0
        try:
            while written < len(view):
                written += os.write(self._fd, view[written:])
        finally:
            while lines and written >= len(lines[0]):
                written -= len(lines.popleft())
                batch.popleft()
                self._rest = b""
            if written:
                self._rest = lines[0][written:]

    def close(self) -> None:
        os.close(self._fd)


class _Arrays:
    """Writer of the raw outputs of one query on one frame, each to a file of its own."""

    def __init__(self, folder: Path, event: SinkEvent) -> None:
        self._folder, self._count = folder, 0
        self._start = f"{event.info.run}-{_file_name(event.query)}-{event.frame.index:06d}"

    def save(self, name: str, values: NDArray[Any]) -> str:
        """Write a raw output to a .npy file, and return the file's path relative to the folder of results.jsonl.

        Raises:
            OSError: the file cannot be written.
        """
        # The number tells outputs apart whose names are equal in their first characters.
        path = self._folder / f"{self._start}-{self._count}-{_file_name(name)}.npy"
        self._count += 1
        self._folder.mkdir(exist_ok=True)
        # Strings come as Python objects; as fixed-width text they can be read without pickle.
        np.save(path, values.astype(str) if values.dtype == object else values, allow_pickle=False)
        return f"{self._folder.name}/{path.name}"


def _file_name(name: str) -> str:
    """Return a name without characters that lead out of a folder; names from a manifest may hold anything."""
    return quote(name, safe=" ")[:_MOST_NAME]

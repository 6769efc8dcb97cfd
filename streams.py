"""Standard output that may fail while a command runs: a pipe is closed, a terminal is gone, a disk is full."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["forgive_output", "forgiving_output"]

_log = logging.getLogger(__name__)
_NOBODY_READS = (errno.EPIPE, errno.EIO)
"""Error numbers (errno) of a write to a pipe whose reader is gone, and to a terminal that is gone."""


class _Output:
    """Text stream that passes output on to another stream, and drops the output once nobody reads it any more.

    A command then does its work to the end, and its exit status says only whether the work succeeded.

    Args:
        stream: the stream to write to.
        forgives_all: whether output is also dropped after other errors, such as a full disk.
    """

    def __init__(self, stream: TextIO, *, forgives_all: bool = False) -> None:
        self._stream, self.forgives_all = stream, forgives_all

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text to the stream, or drop the text if nobody reads the stream any more."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop its output if nobody reads the stream any more."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Redirect all further output to /dev/null, because Python would otherwise fail when it exits.

        Raises:
            OSError: the error is not one that the command may ignore.
        """
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if error.errno in _NOBODY_READS:
            return
        if not self.forgives_all:
            raise OSError(error.errno, error.strerror, "standard output") from error
        _log.warning("standard output: %s; nothing is printed from now on", error.strerror)


@contextlib.contextmanager
def forgiving_output() -> Iterator[None]:
    """Let a command go on when nobody reads its output any more, inside the ``with`` block.

    Errors of the standard error stream are ignored, whatever they are.

    Raises:
        OSError: the standard output cannot be written for another reason, such as a full disk.
    """
    before = sys.stdout, sys.stderr
    # A process that was started without one of the streams has None for it.
    if sys.stdout is not None:
        sys.stdout = _Output(sys.stdout)
    if sys.stderr is not None:
        sys.stderr = _Output(sys.stderr, forgives_all=True)
    try:
        yield
    finally:
        try:
            # Also when the command exits: Python's own flush at the end would fail with a status of its own.
            if sys.stdout is not None:
                sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = before


def forgive_output() -> None:
    """Let the running command go on also when its standard output cannot be written, such as on a full disk."""
    if isinstance(sys.stdout, _Output):
        sys.stdout.forgives_all = True

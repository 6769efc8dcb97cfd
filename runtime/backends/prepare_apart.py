"""Preparing a bundle's device cache in a process of its own, beside a run that must not be slowed down."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ...bundles.reader import Bundle, open_bundle
from ...errors import BackendError, GemelError, first_line
from .registry import is_prepared, open_backend

__all__ = ["prepare_apart"]

# The priority first: importing alone takes a second of a slow core.
_CODE = f"import os; os.nice(19); from {__name__} import _prepare; _prepare()"
_POLL_S = 0.1
"""Seconds between two checks whether the process that makes a device cache has ended or is no longer needed."""


def prepare_apart(bundle: Bundle, backend: str, over: Callable[[], bool]) -> None:
    """Make a bundle's device cache if it is missing, in a process with the lowest priority.

    In this process, the work would hold the interpreter's lock for many milliseconds at a time, and take cores from
    the models that run.

    Args:
        bundle: an open bundle.
        backend: name of the backend.
        over: function that returns whether the cache is no longer wanted.

    Raises:
        BackendError: the cache cannot be made, or is no longer wanted.
    """
    if is_prepared(bundle, backend):
        return
    # The child must find the same gemel, also where it is not installed.
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", _CODE, str(bundle.path.resolve()), backend]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        text=True,
    ) as process:
        while True:
            try:
                _, said = process.communicate(timeout=_POLL_S)
                break
            except subprocess.TimeoutExpired:
                if over():
                    process.kill()
    if over():
        raise BackendError(f"{bundle.path}: is no longer prepared, because the run has ended")
    if process.returncode:
        lines = said.strip().splitlines()
        reason = lines[-1] if lines else f"the process that prepares it ended with status {process.returncode}"
        raise BackendError(f"{bundle.path}: cannot be prepared: {reason}")


def _prepare() -> None:
    """Make the device cache of the bundle and backend that the arguments of this process name."""
    path, backend = sys.argv[1:]
    try:
        open_backend(open_bundle(Path(path)), backend, memory="min").close()
    except (GemelError, OSError) as error:
        sys.exit(first_line(error))

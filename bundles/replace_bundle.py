"""Replacement of a bundle's folder: a new bundle appears as a whole, or the old folder stays as it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..durable import remove_leftovers, replace_folder, work_folder
from ..errors import BundleError
from ..locks import try_lock
from .reader import CACHE, MANIFEST, open_bundle

__all__ = ["alone_with", "replacing", "restore_bundle"]


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """Make a new folder beside ``output`` for the block to fill, and rename it to ``output`` when the block succeeds.

    If the block fails, or the process is killed, ``output`` stays as it was. What a killed process leaves beside
    ``output`` is removed at the next call. The folder is made before the block starts, so that a folder that cannot be
    written is found before the work is done.

    Args:
        output: folder of the bundle. A bundle that is there is replaced.

    Raises:
        BundleError: ``output`` cannot be written, or holds anything but a bundle.
    """
    output = output.absolute()
    if not output.name or output.is_symlink():
        raise BundleError(f"{output}: is a link or the root; a bundle is a folder of its own")
    with contextlib.ExitStack() as stack:
        try:
            # Before the check: a killed process may have left the old bundle aside.
            work = stack.enter_context(work_folder(output, _prefix(output), restore=True))
        except OSError as error:
            raise BundleError(f"{output}: cannot be written: {error.strerror}") from error
        _check(output)
        yield work
        try:
            replace_folder(work, output)
        except OSError as error:
            raise BundleError(f"{output}: cannot be written: {error.strerror}") from error


def restore_bundle(path: Path) -> None:
    """Move a bundle back to its place that a killed process had moved aside.

    That can only be where the file system cannot exchange two folders in one step.
    """
    path = path.absolute()
    if path.name and not os.path.lexists(path):
        remove_leftovers(path, _prefix(path), restore=True)


@contextlib.contextmanager
def alone_with(bundle: Path) -> Iterator[None]:
    """Hold the lock of a bundle during the block, so that only one process at a time replaces it.

    Raises:
        BundleError: another process replaces the bundle.
    """
    try:
        folder = os.open(bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"{bundle}: not a bundle: {error.strerror}") from error
    try:
        if not try_lock(folder):
            raise BundleError(f"{bundle}: another process replaces it")
        if not os.path.samestat(os.fstat(folder), bundle.stat()):
            raise BundleError(f"{bundle}: another process has just replaced it; try again")
        yield
    finally:
        os.close(folder)


def _prefix(output: Path) -> str:
    """Return the beginning of the names of work folders for a bundle."""
    return f".{output.name}-"


def _check(output: Path) -> None:
    """Refuse to overwrite an output folder that is not a bundle.

    Raises:
        BundleError: the path is no folder, or the folder holds a file that is not part of a bundle.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise BundleError(f"{output}: is not a folder")
    present = {path.name for path in output.iterdir()}
    known = {MANIFEST, CACHE}
    if MANIFEST in present:
        with contextlib.suppress(BundleError):
            known |= set(open_bundle(output).manifest.files)
    if strange := sorted(present - known):
        raise BundleError(f"{output}: holds {strange[0]}, which is not of a bundle; it is not overwritten")

"""Replacement of a bundle's folder: a new bundle appears as a whole, or the old folder stays as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..durable import replace_folder, work_folder
from ..errors import BundleError
from .reader import CACHE, MANIFEST, open_bundle

__all__ = ["replacing"]


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
            work = stack.enter_context(work_folder(output, f".{output.name}-", restore=True))
        except OSError as error:
            raise BundleError(f"{output}: cannot be written: {error.strerror}") from error
        _check(output)
        yield work
        try:
            replace_folder(work, output)
        except OSError as error:
            raise BundleError(f"{output}: cannot be written: {error.strerror}") from error


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

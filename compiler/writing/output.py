"""Folder that a bundle is written to: it appears as a whole, or stays as it was."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...bundles.reader import CACHE, MANIFEST, open_bundle
from ...errors import BundleError

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """Make a new folder beside ``output`` for the block to fill, and rename it to ``output`` when the block succeeds.

    If the block fails, the new folder is removed and ``output`` stays as it was. The folder is made before the block
    starts, so that a place that cannot be written is found before the work is done.

    Args:
        output: folder of the bundle. A bundle that is there is replaced.

    Raises:
        BundleError: ``output`` cannot be written, or holds anything but a bundle.
    """
    output = output.absolute()
    _check(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    except OSError as error:
        raise BundleError(f"{output}: cannot be written: {error.strerror}") from error
    try:
        yield work
        work.chmod(0o755)
        _swap(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check(output: Path) -> None:
    """Refuse a folder that is not a bundle.

    Raises:
        BundleError: the folder is a link or the root, or holds a file that is not part of a bundle.
    """
    if not output.name or output.is_symlink():
        raise BundleError(f"{output}: is a link or the root; a bundle is a folder of its own")
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


def _swap(work: Path, output: Path) -> None:
    """Move the old bundle away, rename the new one, and remove the old one; move it back if the rename fails."""
    if not output.exists():
        work.rename(output)
        return
    old = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-old-"))
    output.replace(old)
    try:
        work.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old)

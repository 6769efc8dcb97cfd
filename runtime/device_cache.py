"""Device cache on disk: folders of files that are made from a bundle for one device. A cache is complete or missing."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from platformdirs import user_cache_path

from ..bundles.reader import CACHE, Bundle, verify
from ..errors import BackendError, BundleError

__all__ = [
    "check_folder",
    "find_or_make",
    "folder_for",
    "places",
    "plain_size",
    "write_whole",
]

_T = TypeVar("_T")


def check_folder(folder: Path) -> None:
    """Check that a cache folder and its parent are folders and not links, because a link could lead elsewhere.

    Raises:
        BundleError: the folder or its parent is missing, a link or no folder.
    """
    for path in (folder.parent, folder):
        if not stat.S_ISDIR(_status(path).st_mode):
            raise BundleError(f"{path}: is not a folder")


def plain_size(path: Path) -> int:
    """Return the size in bytes of a plain file, without opening it: a link may lead elsewhere, and a pipe may block.

    Raises:
        BundleError: the file is missing, or is no plain file.
    """
    status = _status(path)
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: is not a plain file")
    return status.st_size


def places(bundle: Bundle, name: str) -> tuple[Path, Path]:
    """Return the folders that may hold a cache: in the bundle's folder (preferred), and in the user's cache folder."""
    return bundle.path / CACHE / name, user_cache_path("gemel") / name


def find_or_make(
    folders: Sequence[Path], bundle: Bundle, read: Callable[[Path], _T], fill: Callable[[Path], None]
) -> _T:
    """Return the cache in the first folder that has a complete one; otherwise create it in the first writable folder.

    Args:
        folders: folders that may hold the cache, the preferred folder first.
        bundle: bundle that the cache is made from. Its hashes are verified before a cache is created.
        read: function that reads a cache, called with the folder; raises BundleError if it is missing or damaged.
        fill: function that writes a new cache, called with an empty folder.

    Raises:
        BundleError: a file of the bundle is damaged.
        BackendError: the cache cannot be made, or no folder can be written.
    """

    def whole(folder: Path) -> _T | None:
        try:
            return read(folder)
        except BundleError:
            return None

    for folder in folders:
        if (found := whole(folder)) is not None:
            return found
    for _ in verify(bundle):
        pass
    reasons = []
    for folder in folders:
        if folder.parent.is_symlink():
            reasons.append(f"{folder.parent}: is a link")
            continue
        try:
            replace(folder, fill, lambda place: whole(place) is not None)
            return read(folder)
        except OSError as error:
            reasons.append(f"{error.filename or folder}: {error.strerror or error}")
        except BundleError as error:
            reasons.append(str(error))
    raise BackendError(f"no device cache could be written: {'; '.join(reasons)}")


def folder_for(bundle: Bundle, name: str) -> Path:
    """Return a folder for a backend's small files, which are made again when they are missing.

    If no folder can be written, the returned folder may not exist.

    Args:
        bundle: an open bundle. A folder inside the bundle's folder is preferred, if that can be written.
        name: name of the backend.
    """
    folders = (bundle.path / CACHE / name, user_cache_path("gemel") / f"{name}-{bundle.id[:16]}")
    for folder in folders:
        with suppress(OSError):
            # A link may lead elsewhere.
            if folder.parent.is_symlink():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return folders[0]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in an existing folder, atomically: readers see the old content or all of the new content.

    Raises:
        OSError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        made = Path(folder) / path.name
        made.write_bytes(data)
        made.replace(path)


def replace(folder: Path, fill: Callable[[Path], None], whole: Callable[[Path], bool]) -> None:
    """Fill a temporary folder and rename it to ``folder``, so that a cache is complete or missing.

    If another process has created a complete cache in ``folder`` meanwhile, that cache stays, as it may be in use.

    Args:
        folder: folder that will hold the cache.
        fill: function that writes a new cache, called with an empty folder.
        whole: function that returns whether a folder holds a complete cache, called with the folder.

    Raises:
        OSError: the folder cannot be written, and no other process created the cache.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".baking-"))
    try:
        made = work / "made"
        made.mkdir()
        fill(made)
        if whole(folder):
            return
        if os.path.lexists(folder):
            folder.rename(work / "old")
        made.rename(folder)
    except OSError:
        if not whole(folder):
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _status(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error

"""Device cache on disk: folders of files that are made from a bundle for one device. A cache is complete or missing."""

from __future__ import annotations

import ctypes
import logging
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from platformdirs import user_cache_path

from ..bundles.reader import CACHE, Bundle, verify
from ..durable import check_room, remove_leftovers, replace_folder, work_folder
from ..errors import BackendError, BundleError

__all__ = [
    "check_folder",
    "find_or_make",
    "folder_for",
    "places",
    "plain_size",
]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_PREFIX = ".baking-"
"""Beginning of the names of folders in which device caches are made, before they are moved to their place."""


def check_folder(folder: Path) -> None:
    """Check that a device cache's folder and its parent are folders and not links, as a link could lead elsewhere.

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
    """Return the folders that may hold a device cache: in the bundle's folder (preferred), and in the user's cache."""
    return bundle.path / CACHE / name, user_cache_path("gemel") / name


def find_or_make(
    folders: Sequence[Path], bundle: Bundle, read: Callable[[Path], _T], fill: Callable[[Path], None]
) -> _T:
    """Return the device cache in the first folder that has a complete one; else create it in the first writable folder.

    A cache that is there and damaged is reported with one line and made again. So is a folder that cannot be written.

    Args:
        folders: folders that may hold the cache, the preferred folder first.
        bundle: bundle that the cache is made from. Its hashes are verified before a cache is created.
        read: function that reads a cache, called with the folder; raises BundleError if it is missing or damaged.
        fill: function that writes a new cache, called with an empty folder.

    Raises:
        BundleError: a file of the bundle is damaged.
        BackendError: the cache cannot be made, or no folder can be written.
    """

    def kept(folder: Path) -> _T | None:
        try:
            return read(folder)
        except BundleError as error:
            if os.path.lexists(folder):
                _log.warning("device cache: %s; it is made again", error)
            return None

    def whole(folder: Path) -> bool:
        with suppress(BundleError):
            read(folder)
            return True
        return False

    for folder in folders:
        if not folder.parent.is_symlink():
            remove_leftovers(folder, _PREFIX)
    for folder in folders:
        if (found := kept(folder)) is not None:
            return found
    for _ in verify(bundle):
        pass
    reasons: list[str] = []
    for folder in folders:
        if reasons:
            _log.warning("device cache: %s; it is made in %s", reasons[-1], folder.parent)
        if folder.parent.is_symlink():
            reasons.append(f"{folder.parent}: is a link")
            continue
        try:
            _create(folder, bundle, fill, whole)
            found = read(folder)
            _return_free_memory()
            return found
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


def _create(folder: Path, bundle: Bundle, fill: Callable[[Path], None], whole: Callable[[Path], bool]) -> None:
    """Fill a temporary folder and move it to ``folder``, so that a cache is complete or missing.

    If another process has created a complete cache in ``folder`` meanwhile, that cache stays, as it may be in use.

    Args:
        folder: folder that will hold the cache.
        bundle: bundle that the cache is made from.
        fill: function that writes a new cache, called with an empty folder.
        whole: function that returns whether a folder holds a complete cache, called with the folder.

    Raises:
        OSError: the folder cannot be written, and no other process created the cache.
    """
    try:
        with work_folder(folder, _PREFIX) as made:
            try:
                fill(made)
            except Exception:
                # ONNX Runtime and TensorRT blame the model if they cannot write a file. A cache is about as large as
                # the bundle's weights.
                check_room(folder.parent, bundle.manifest.files[bundle.manifest.blob].bytes)
                raise
            if not whole(folder):
                replace_folder(made, folder)
    except OSError as error:
        if whole(folder):
            return
        # The names of temporary files say nothing to a user.
        raise OSError(error.errno, error.strerror, str(folder.parent)) from error


def _return_free_memory() -> None:
    """Return memory that the process has freed to the system, where the C library can do that.

    The copies of weights that making a cache needs are gone by now, but glibc keeps their pages for later allocations,
    and a run that only maps weights has none: eight ResNet18 took 585 MB instead of 435 MB after a first start.
    """
    # musl and other systems than Linux have no such function.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error

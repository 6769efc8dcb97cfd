"""Writing of files and folders so that a kill, a full disk or a power cut leaves the old content or all of the new one.

New content is written beside its place, in a temporary file or in a work folder, and then takes the place in one step.
The process that writes holds a lock on the temporary file or folder. The system releases the lock when the process
ends, however it ends. So the next process can tell what a killed process left behind, and removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .locks import abandoned, lock_at

__all__ = [
    "check_room",
    "is_plain",
    "place_file",
    "remove_leftovers",
    "replace_folder",
    "sync_tree",
    "work_folder",
    "write_through",
    "write_whole",
]

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)
_MISSING_CALL = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
"""Error numbers of a kernel, file system or sandbox that cannot exchange two folders."""
_WORK = re.compile(r"new|old|made|undone|device-cache|\.tensors-.*|.*\.(onnx|bin|json)")
"""Pattern of all names that gemel gives to items of a work folder, also those of older versions of gemel."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in an existing folder, atomically: readers see the old content or all of the new content.

    A link or pipe at ``path`` is replaced. :func:`write_through` follows links.

    Raises:
        OSError: the file cannot be written. Its old content is still there.
    """
    _sweep_files(path)
    made, descriptor = _temporary(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            place_file(made, path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def place_file(made: Path, target: Path) -> None:
    """Put a finished file in the place of ``target``, on the same file system, once its content is on the disk.

    The name is on the disk, too, when the function returns.

    Raises:
        OSError: the file cannot be written or moved.
    """
    _sync(made)
    made.replace(target)
    _sync(target.parent)


def write_through(path: Path, data: bytes) -> None:
    """Write a file that a user named: like :func:`write_whole`, but follow links, and write into pipes and devices.

    Raises:
        OSError: the file cannot be written. The old content of a plain file is still there.
    """
    if not is_plain(path):
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    try:
        write_whole(path, data)
    except PermissionError:
        # A file may be writable although its folder is not.
        path.write_bytes(data)


def is_plain(path: Path) -> bool:
    """Return whether a path is a plain file or does not exist; False for a pipe, a device or anything else in /dev,
    /proc."""
    return path.absolute().parts[1:2] not in (("dev",), ("proc",)) and (path.is_file() or not path.exists())


@contextlib.contextmanager
def work_folder(target: Path, prefix: str, *, restore: bool = False) -> Iterator[Path]:
    """Make an empty folder beside ``target`` to build its new content in, and remove the folder at the end.

    First remove work folders that killed processes left behind.

    Args:
        target: path that the new folder will get; :func:`replace_folder` moves it there.
        prefix: beginning of the work folder's name. The rest of the name is random.
        restore: whether an old folder that a killed process had moved aside is moved back to ``target`` first. Then
            ``prefix`` must be used for no other target.

    Raises:
        OSError: the folder of ``target`` cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target, prefix, restore=restore)
    work, lock = _locked_folder(target.parent, prefix)
    try:
        made = work / "new"
        made.mkdir()
        yield made
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def remove_leftovers(target: Path, prefix: str, *, restore: bool = False) -> None:
    """Remove the work folders beside ``target`` that killed processes left behind.

    A folder with the right name but with other content is left alone: a user may have made it.

    Args:
        target: path that :func:`work_folder` was called with.
        prefix: beginning of the names of work folders.
        restore: whether to move an old folder back to ``target``; see :func:`work_folder`.
    """
    pattern = re.compile(rf"{re.escape(prefix)}(old-)?[a-z0-9_]{{8}}")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for folder in [Path(entry.path) for entry in entries if pattern.fullmatch(entry.name)]:
            with abandoned(folder) as free:
                if not free or not folder.is_dir() or not all(_WORK.fullmatch(each.name) for each in folder.iterdir()):
                    continue
                old = folder if folder.name.startswith(f"{prefix}old-") else folder / "old"
                if restore and not os.path.lexists(target) and old.is_dir():
                    old.rename(target)
                shutil.rmtree(folder, ignore_errors=True)


def replace_folder(made: Path, target: Path) -> None:
    """Put a folder that was made in a :func:`work_folder` in the place of ``target``, once its files are on the disk.

    An old folder at ``target`` is exchanged with the new one in one step, so that a kill leaves one of the two there.
    File systems that cannot exchange folders need two steps. A kill between them leaves nothing at ``target`` until the
    next :func:`work_folder` for ``target``, which can move the old folder back.

    Raises:
        OSError: the folder cannot be written or moved. The old folder is still there.
    """
    sync_tree(made)
    if not os.path.lexists(target):
        made.rename(target)
    elif not _exchange(made, target):
        old = made.with_name("old")
        target.rename(old)
        try:
            made.rename(target)
        except BaseException:
            old.rename(target)
            raise
    _sync(target.parent)


def sync_tree(folder: Path) -> None:
    """Wait until all files below a folder, and the folder's list of names, are on the disk.

    Raises:
        OSError: the disk does not take them.
    """
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(path, name))
        _sync(Path(path))


def check_room(folder: Path, size: int) -> None:
    """Check that a file of ``size`` bytes has room on the disk of a folder.

    Libraries report a full disk in their own words, or not at all.

    Raises:
        OSError: there is no room, or the user's quota is used up; the error names the folder.
    """
    try:
        made, descriptor = _temporary(folder / "room")
        try:
            os.posix_fallocate(descriptor, 0, max(1, size))
        finally:
            os.close(descriptor)
            made.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, os.strerror(error.errno), str(folder)) from error


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot do this for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return False if the kernel or the file system cannot do that.

    Raises:
        OSError: the folders cannot be exchanged for another reason.
    """
    call = getattr(_libc, "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _MISSING_CALL:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _temporary(path: Path) -> tuple[Path, int]:
    """Create a temporary file beside ``path``, locked by this process; return its path and its open descriptor."""
    while True:
        made = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        # Not with tempfile, whose files only their owner can read.
        descriptor = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        if lock_at(descriptor, made):
            return made, descriptor
        os.close(descriptor)


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """Create a folder with a random name, locked by this process; return its path and its open descriptor."""
    while True:
        work = parent / f"{prefix}{secrets.token_hex(4)}"
        work.mkdir()
        try:
            descriptor = _opened(work)
        except FileNotFoundError:
            continue
        if lock_at(descriptor, work):
            return work, descriptor
        os.close(descriptor)


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _sweep_files(path: Path) -> None:
    """Remove temporary files of ``path`` that killed processes left behind."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.part")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with abandoned(Path(entry.path)) as free:
                    if free:
                        Path(entry.path).unlink()

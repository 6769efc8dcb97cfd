"""Verification of files once per boot: SHA-256 hashes are compared again only when a file or the boot has changed."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..durable import write_whole
from ..errors import BundleError
from .reader import sha256_of

__all__ = ["VERIFIED", "forget_verified", "verify_once"]

VERIFIED = "verified.json"
"""Name of the file that records which files were verified since the machine was started."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def verify_once(files: Mapping[Path, str], folder: Path) -> bool:
    """Compare files with their SHA-256, unless that was done since the last boot and the files are as they were then.

    A disk can lose bits while the machine is off, and a program can write to a file at any time. The first is found at
    the first call after a boot. The second changes the file's times.

    Args:
        files: file -> SHA-256 of its content, in hex.
        folder: folder for the record :data:`VERIFIED`. If it cannot be written, the files are read at every call.

    Returns:
        Whether the files were read.

    Raises:
        BundleError: a file is missing, no plain file, or damaged.
    """
    boot, before = _boot(), {path: _state(path, digest) for path, digest in files.items()}
    document = {"boot": boot, "files": {path.name: state for path, state in before.items()}}
    record = folder / VERIFIED
    if boot and _read(record) == document:
        return False
    for path, digest in files.items():
        try:
            found = sha256_of(path)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
        if found != digest:
            raise BundleError(f"{path}: content is damaged: sha256 is {found[:12]}..., {digest[:12]}... is expected")
    # A record of files that changed meanwhile would never match.
    with suppress(OSError, BundleError):
        if before == {path: _state(path, digest) for path, digest in files.items()}:
            write_whole(record, json.dumps(document).encode())
    return True


def forget_verified(folder: Path) -> None:
    """Have the files of a folder verified at the next :func:`verify_once`, because one of them seems to be damaged."""
    with suppress(OSError):
        (folder / VERIFIED).unlink()


def _state(path: Path, digest: str) -> list[str | int]:
    """Return a file's expected SHA-256, and the size, times and inode of the file, of which some change when the file
    is written or replaced."""
    try:
        found = path.lstat()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{path}: is not a plain file")
    return [digest, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read(record: Path) -> object:
    """Return the content of a record of verified files; None if it is missing, damaged, or no plain file."""
    try:
        if stat.S_ISREG(record.lstat().st_mode):
            content: object = json.loads(record.read_bytes())
            return content
    except (OSError, ValueError, RecursionError):
        pass
    return None


def _boot() -> str:
    """Return the id of the machine's last boot; empty if the system has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""

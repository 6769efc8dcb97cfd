"""Application of a delta: the new bundle is built beside the old one, verified, and takes its place in one step."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import BundleError, first_line
from .build_bundle import build_bundle, short_id
from .delta_format import DeltaHeader, StoredHeader, read_header
from .keep_reverts import merged_id, revert_again, undo_reverts
from .known_variables import hand_on_variables
from .reader import Bundle, open_bundle
from .replace_bundle import alone_with, replacing, restore_bundle

__all__ = ["AppliedDelta", "FinishApplied", "apply_delta", "check_base"]

FinishApplied = Callable[[Bundle, Bundle, Path], object]
"""Function that writes a bundle into an empty folder, given the old bundle and the one that a delta makes of it."""


@dataclass(frozen=True)
class AppliedDelta:
    """Result of applying a delta."""

    bundle: Bundle
    """The new bundle."""
    before: str
    """Id of the bundle that the delta started from."""
    bytes: int
    """Size of the delta."""
    new_bytes: int
    """Bytes of the tensors that came with the delta."""
    kept_bytes: int
    """Bytes of the tensors that the old bundle had."""


def apply_delta(
    delta: Path,
    bundle: Path,
    output: Path | None = None,
    *,
    key: bytes | None = None,
    where: str | None = None,
    finish: FinishApplied | None = None,
) -> AppliedDelta:
    """Make a new bundle of an old one and a delta. Queries that are reverted in the old one are in the new one, too.

    The new bundle is written beside its place and verified by the hashes in its manifest. Then it takes the place of
    the old bundle in one step. Nothing of the old bundle is changed before: a process that is killed, a full disk and a
    delta that is damaged leave it as it was. A run that has the old bundle's files open keeps them.

    Args:
        delta: file that :func:`gemel.bundles.write_delta.write_delta` wrote.
        bundle: folder of the old bundle.
        output: folder for the new bundle; None for that of the old one.
        key: public ed25519 key that must have signed the delta; None to accept any delta.
        where: name of the delta for error messages; its path if None.
        finish: function that makes the bundle that takes the place of the old one from the delta's; None to take the
            delta's. An exception of the function leaves the old bundle.

    Raises:
        BundleError: the delta is cut off, damaged, not signed, starts from another bundle or was applied before, or a
            bundle cannot be read or written. The message says which.
    """
    where = where or str(delta)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(delta))
        header = _read(file, where, key)
        restore_bundle(bundle)
        stack.enter_context(alone_with(bundle))
        old = open_bundle(bundle)
        check_base(header.content, old, where)
        target = old.path if output is None else output
        try:
            with replacing(target) as final:
                start = old
                if header.content.base != old.id:
                    start, finish = undo_reverts(old, _beside(final, "undone")), revert_again
                work = final if finish is None else _beside(final, "made")
                done = build_bundle(file, header.content, start, work, where)
                if finish is not None:
                    finish(old, open_bundle(work), final)
        except OSError as error:
            raise BundleError(f"{target}: cannot be written: {error.strerror or first_line(error)}") from error
    opened = open_bundle(target)
    hand_on_variables(old, opened)
    return AppliedDelta(opened, old.id, header.bytes, *done)


def check_base(header: DeltaHeader, bundle: Bundle, where: str) -> None:
    """Check that a delta starts from a bundle, or from what the bundle is without its reverts.

    Raises:
        BundleError: the delta starts from another bundle, or has been applied to this one.
    """
    if header.makes in (bundle.id, merged_id(bundle)):
        raise BundleError(
            f"{where}: {bundle.path} is already the bundle {short_id(header.makes)} that this delta makes"
        )
    if header.base not in (bundle.id, merged_id(bundle)):
        raise BundleError(
            f"{where}: starts from bundle {short_id(header.base)}, but {bundle.path} is {short_id(bundle.id)};"
            " apply the deltas between them first"
        )


def _beside(work: Path, name: str) -> Path:
    """Make a folder beside a work folder. Those of killed processes are told by the names in them."""
    made = work.with_name(name)
    made.mkdir()
    return made


def _opened(delta: Path) -> BinaryIO:
    """Open a delta that is a plain file.

    Raises:
        BundleError: the file cannot be read.
    """
    try:
        # A pipe may block.
        if not delta.is_file():
            raise BundleError(f"{delta}: is {'not a file' if delta.exists() else 'missing'}")
        return delta.open("rb")
    except OSError as error:
        raise BundleError(f"{delta}: cannot be read: {error.strerror}") from error


def _read(file: BinaryIO, where: str, key: bytes | None) -> StoredHeader:
    """Read the header of a delta, and compare the size that it says with that of the file.

    Raises:
        BundleError: the header cannot be used, or the file has another size.
    """
    header = read_header(file, where, key)
    size = os.fstat(file.fileno()).st_size
    if size != header.bytes:
        what = "is cut off" if size < header.bytes else "goes on behind its end"
        raise BundleError(f"{where}: {what}: has {size} bytes, its header says {header.bytes}")
    return header

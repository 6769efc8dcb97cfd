"""Fetching of deltas from a store, and application of one after another until a bundle is up to date.

What was fetched stays in a file beside the bundle when a line breaks or the process is killed, and the next call goes
on from there. Every frame is verified before the next one is fetched, and the whole delta again when it is applied.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import BackendError, BundleError, first_line
from ..locks import lock_at
from .apply_delta import AppliedDelta, FinishApplied, apply_delta, check_base
from .build_bundle import short_id
from .delta_format import PackedFrame, StoredHeader, delta_name, read_header
from .delta_store import DeltaStore, RemoteFile
from .keep_reverts import merged_id
from .reader import Bundle, open_bundle
from .replace_bundle import restore_bundle

__all__ = ["PullProgress", "pull_deltas"]

PullProgress = Callable[[int, int], None]
"""Function called after each range: bytes of a delta that are here, and bytes of the whole delta."""

_RANGE = 1 << 19
"""Bytes that are asked for at once."""


def pull_deltas(
    store: DeltaStore,
    bundle: Path,
    key: bytes | None = None,
    applied: Callable[[AppliedDelta], None] = lambda done: None,
    progress: PullProgress = lambda here, whole: None,
    *,
    once: bool = False,
    finish: FinishApplied | None = None,
) -> int:
    """Fetch and apply the deltas of a store that lead on from a bundle; return how many were applied.

    In a folder, the next delta has the name :func:`gemel.bundles.delta_format.delta_name`, so the folder needs no list.
    Reverted queries stay reverted; a delta that starts from the bundle with them goes first.
    A source that is one delta is applied once.

    Args:
        store: where the deltas are.
        bundle: folder of the bundle, which is replaced in one step for each delta.
        key: public ed25519 key that must have signed every delta; None to accept any.
        applied: function called after each delta.
        progress: function called while a delta is fetched; see :data:`PullProgress`.
        once: whether to apply one delta at most.
        finish: makes the bundle that takes the place of the old one; see
            :func:`gemel.bundles.apply_delta.apply_delta`.

    Raises:
        BackendError: the store does not answer.
        BundleError: a delta cannot be applied, see :func:`gemel.bundles.apply_delta.apply_delta`; or the deltas lead in
            a circle.
    """
    seen: set[str] = set()
    count = 0
    with _part(bundle) as (path, part):
        while True:
            old = open_bundle(bundle)
            if old.id in seen:
                raise BundleError(f"{store.shown}: its deltas lead back to bundle {short_id(old.id)}")
            seen.add(old.id)
            remote = _next_delta(store, old)
            if remote is None:
                break
            with contextlib.closing(remote):
                try:
                    _fetch(remote, part, old, key, progress)
                except OSError as error:
                    raise BundleError(f"{path}: cannot be written: {error.strerror or first_line(error)}") from error
            applied(apply_delta(path, bundle, key=key, where=remote.where, finish=finish))
            os.ftruncate(part.fileno(), 0)
            count += 1
            if store.is_file or once:
                break
        path.unlink(missing_ok=True)
    return count


def _next_delta(store: DeltaStore, bundle: Bundle) -> RemoteFile | None:
    """Return the delta that leads on from a bundle, or from what it is without its reverts; None if there is none.

    Raises:
        BackendError: the store does not answer, or does not have the only delta that it names.
    """
    for base in dict.fromkeys((bundle.id, merged_id(bundle))):
        remote = store.file(delta_name(base))
        if remote.exists():
            return remote
        remote.close()
        if store.is_file:
            raise BackendError(f"{remote.where}: is not there")
    return None


@contextlib.contextmanager
def _part(bundle: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Open the file beside a bundle that holds what was fetched of a delta.

    Raises:
        BundleError: the folder cannot be written, or another process fetches a delta for the bundle.
    """
    restore_bundle(bundle)
    open_bundle(bundle)
    bundle = bundle.absolute()
    path = bundle.with_name(f".{bundle.name}.pull")
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written: {error.strerror}") from error
    with os.fdopen(number, "r+b", buffering=0) as file:
        # Another process may have ended with this delta, and deleted the file, since it was opened here.
        if not lock_at(number, path):
            raise BundleError(f"{bundle}: another gemel pull is going on")
        yield path, file


def _fetch(remote: RemoteFile, part: BinaryIO, old: Bundle, key: bytes | None, progress: PullProgress) -> None:
    """Complete the file of a delta. What it holds of the same delta already is kept.

    Raises:
        BackendError: the store does not answer; the message says how much is here.
        BundleError: the delta does not start from the bundle, is cut off or damaged, or is not signed with the key.
    """
    header = read_header(remote, remote.where, key)
    check_base(header.content, old, remote.where)
    here = len(header.data)
    try:
        for frame in _missing(part, header):
            here = _fetch_frame(remote, part, frame, here, lambda now: progress(now, header.bytes))
    except BackendError as error:
        size = os.fstat(part.fileno()).st_size
        raise BackendError(f"{error}; {size} of {header.bytes} bytes are here, the next gemel pull goes on") from error
    os.ftruncate(part.fileno(), header.bytes)


def _missing(part: BinaryIO, header: StoredHeader) -> Iterator[PackedFrame]:
    """Yield the frames of a delta, and begin the file anew if it holds another one."""
    part.seek(0)
    if _read(part, len(header.data)) != header.data:
        os.ftruncate(part.fileno(), 0)
        part.seek(0)
        _write(part, header.data)
    yield from header.content.frames


def _fetch_frame(
    remote: RemoteFile, part: BinaryIO, frame: PackedFrame, begin: int, progress: Callable[[int], None]
) -> int:
    """Complete one frame in the file of a delta, and return the offset of its end.

    A frame whose bytes are wrong is fetched once more: some of them may be left from a write that was not finished.

    Raises:
        BundleError: the store's file ends too early, or the frame has another SHA-256 twice.
    """
    end = begin + frame.packed
    for _ in range(2):
        part.seek(begin)
        data = bytearray(_read(part, frame.packed))
        while len(data) < frame.packed:
            remote.seek(begin + len(data))
            piece = remote.read(min(_RANGE, frame.packed - len(data)))
            if not piece:
                raise BundleError(f"{remote.where}: is cut off: has {begin + len(data)} bytes")
            part.seek(begin + len(data))
            _write(part, piece)
            data += piece
            progress(begin + len(data))
        if hashlib.sha256(data).hexdigest() == frame.sha256:
            return end
        os.ftruncate(part.fileno(), begin)
    raise BundleError(
        f"{remote.where}: is damaged: other sha256 than its header says, {begin} bytes from its beginning"
    )


def _read(file: BinaryIO, size: int) -> bytes:
    """Return the next ``size`` bytes of an unbuffered file; fewer at its end."""
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all bytes to an unbuffered file."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]

"""Uploader: a thread that moves samples from a folder of the box to a store, when the line allows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Condition, Thread
from time import monotonic
from typing import Any

from ...bundles.addresses import shown_reason, shown_server
from .priority import step_back
from .sample_folder import SampleFolder
from .sample_record import PICTURE_SUFFIX
from .sink_counts import SinkCounts

__all__ = ["Uploader"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0
"""Seconds before a store that failed is tried again: the first time, and at most. The pause doubles each time."""
_LOOK_EVERY_S = 60.0
"""Seconds after which the folder is looked at again, although no sample was announced."""
_GRACE_S = 5.0
"""Maximum seconds to wait for an upload that is going on when the run ends."""
_BUCKETS = ("s3://", "s3a://", "gs://", "gcs://", "abfs://", "az://")
"""Beginnings of the addresses of stores that have buckets. They have no folders that had to be made, and a bucket whose
name was mistyped must not be."""


class Uploader:
    """Thread that uploads the samples of a folder, the oldest first, and deletes each one that the store has.

    The folder is the queue. So what waits survives a restart, and while the store is away, the folder's own limits
    decide what is dropped. A sample has the same name in the store as in the folder; the picture is uploaded first.

    Args:
        folder: folder of samples.
        address: folder in a store that fsspec knows, such as ``s3://bucket/box7``.
        open_store: function that returns the file system and the path in it for an address; fsspec's if left out. The
            thread calls it, because it may ask the store.
    """

    def __init__(
        self, folder: SampleFolder, address: str, open_store: Callable[[str], tuple[Any, str]] | None = None
    ) -> None:
        self._folder, self._address = folder, address
        self._open = open_store or _open_store
        self._store: tuple[Any, str] | None = None
        self._news = Condition()
        self._written = self._dropped = self._waiting = 0
        self._error: str | None = None
        self._failing_since: float | None = None
        self._ending = self._changed = False
        self._thread = Thread(target=self._run, name="sample-upload", daemon=True)
        self._thread.start()

    def announce(self) -> None:
        """Say that the folder has a new sample."""
        with self._news:
            self._changed = True
            self._news.notify()

    def counts(self) -> SinkCounts:
        """Return the counts of the uploads so far. Any thread may call this.

        A store that is away is ``behind``, not ``failing``: the samples wait on the box, and no run fails for it.
        """
        with self._news:
            state = "behind" if self._failing_since is not None else "working"
            return SinkCounts(self._written, self._dropped, 0, self._waiting, self._error, state)

    def close(self) -> None:
        """End the thread. Samples that wait stay in the folder; the next run uploads them."""
        with self._news:
            self._ending = True
            self._news.notify()
        self._thread.join(_GRACE_S)

    def _run(self) -> None:
        """Upload samples until the run ends. Runs on the uploader's thread and raises nothing."""
        step_back()
        pause, seen = _FIRST_PAUSE_S, set[Path]()
        while True:
            try:
                self._upload_all(seen)
            except Exception as error:
                # Stores raise exceptions of their own libraries, of no common class.
                self._fail(error)
                wait, pause = pause, min(2 * pause, _LONGEST_PAUSE_S)
            else:
                wait, pause = _LOOK_EVERY_S, _FIRST_PAUSE_S
            with self._news:
                # A store that is away is not asked again for each new sample.
                self._news.wait_for(
                    lambda: self._ending or (self._changed and self._failing_since is None), timeout=wait
                )
                self._changed = False
                if self._ending:
                    return

    def _upload_all(self, seen: set[Path]) -> None:
        """Upload every sample that is in the folder now, and count those that were deleted since the last call.

        Args:
            seen: samples that waited after the last call; in the end, those that wait now.

        Raises:
            Exception: the store does not take a sample now.
        """
        waiting = self._folder.records()
        with self._news:
            self._dropped += len(seen.difference(waiting))
            self._waiting = len(waiting)
        seen.clear()
        seen.update(waiting)
        for record in waiting:
            if self._ending:
                break
            try:
                files = [(path, path.read_bytes()) for path in (record.with_suffix(PICTURE_SUFFIX), record)]
            except FileNotFoundError:
                # Deleted meanwhile, because the folder was full.
                sent = False
            else:
                self._send(files)
                sent = True
                self._folder.remove(record)
            seen.discard(record)
            with self._news:
                self._written += sent
                self._dropped += not sent
                self._waiting -= 1

    def _send(self, files: list[tuple[Path, bytes]]) -> None:
        if self._store is None:
            self._store = self._open(self._address)
        store, root = self._store
        for path, data in files:
            store.pipe_file(f"{root}/{path.name}", data)
        with self._news:
            if self._failing_since is not None:
                seconds, self._failing_since = monotonic() - self._failing_since, None
                _log.warning("samples: %s takes them again after %.0f s", shown_server(self._address), seconds)

    def _fail(self, error: Exception) -> None:
        with self._news:
            self._error = f"{type(error).__name__}: {shown_reason(error)[:200]}"
            if self._failing_since is None:
                self._failing_since = monotonic()
                _log.warning("samples: %s: %s", shown_server(self._address), self._error)


def _open_store(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    store, path = url_to_fs(address)
    path = path.rstrip("/")
    if not address.startswith(_BUCKETS):
        with suppress(NotImplementedError):
            store.makedirs(path, exist_ok=True)
    return store, path

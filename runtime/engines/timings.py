"""Timing cache: kernel times that TensorRT measured on this device, kept for the next engine that it builds here."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from ...durable import write_whole

__all__ = ["Timings"]

_DIGEST = hashlib.sha256().digest_size


class Timings:
    """Timing cache in a file: a SHA-256 digest, then TensorRT's data. A damaged or missing file counts as empty.

    Args:
        path: file of the cache, one for each library, library version and card.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def lend(self, config: Any) -> None:
        """Give the known kernel times to TensorRT's builder, before the engine is built.

        Do nothing if the library has no timing caches.
        """
        if not hasattr(config, "create_timing_cache"):
            return
        # The library refuses the cache of another card; then the builder gets an empty cache.
        for data in (self._read(), b""):
            cache = config.create_timing_cache(data)
            if cache is not None and config.set_timing_cache(cache, False):
                return

    def keep(self, config: Any) -> None:
        """Write the kernel times of TensorRT's builder to the timing cache's file, after the engine was built.

        If the folder cannot be written, the times are lost, without an error.
        """
        cache = config.get_timing_cache() if hasattr(config, "get_timing_cache") else None
        if cache is None:
            return
        data = bytes(cache.serialize())
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, hashlib.sha256(data).digest() + data)

    def _read(self) -> bytes:
        """Return the kernel times in the timing cache's file, as TensorRT serialised them.

        The result is empty if the file is missing or its digest is wrong.
        """
        try:
            content = self._path.read_bytes()
        except OSError:
            return b""
        digest, data = content[:_DIGEST], content[_DIGEST:]
        return data if hashlib.sha256(data).digest() == digest else b""

"""What a builder measured of kernels on this device, kept for the next engine that it builds here."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from ..device_cache import write_whole

__all__ = ["Timings"]

_DIGEST = hashlib.sha256().digest_size


class Timings:
    """A timing cache on disk: a digest, and what the library wrote. One that is damaged or missing is an empty one.

    Args:
        path: of the file; for one library, version and card.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def lend(self, config: Any) -> None:
        """Have a builder use what is known, before it builds; nothing where the library has no such caches."""
        if not hasattr(config, "create_timing_cache"):
            return
        # Another card's would be refused; what else the file may hold is not for the library to find out.
        for data in (self._read(), b""):
            cache = config.create_timing_cache(data)
            if cache is not None and config.set_timing_cache(cache, False):
                return

    def keep(self, config: Any) -> None:
        """Write down what is known once it has built; a folder that cannot be written is no error."""
        cache = config.get_timing_cache() if hasattr(config, "get_timing_cache") else None
        if cache is None:
            return
        data = bytes(cache.serialize())
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, hashlib.sha256(data).digest() + data)

    def _read(self) -> bytes:
        try:
            content = self._path.read_bytes()
        except OSError:
            return b""
        digest, data = content[:_DIGEST], content[_DIGEST:]
        return data if hashlib.sha256(data).digest() == digest else b""

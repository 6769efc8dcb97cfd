"""Files of a folder, an HTTP server or an S3-compatible store, read in ranges through fsspec (extra ``pull``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ..errors import BackendError, InputError, MissingExtraError
from .addresses import shown_reason, shown_server

__all__ = ["DeltaStore", "RemoteFile"]

_TRIES = 5
"""Number of times that a range is asked for before a store counts as away."""
_PAUSE_S = 1.0
"""Seconds before the second try; each later pause is twice as long."""
_SILENCE_S = 60.0
"""Seconds without a byte after which a request to an HTTP server is given up."""
_SUFFIX = ".delta"
_GONE = (404, 410)
"""Status codes of HTTP servers that do not have a file."""
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError")
"""Classes of botocore's errors about keys that are not given. Its other errors are those of lines and servers."""


class DeltaStore:
    """A delta, or a folder of deltas, in a place that fsspec can read.

    Args:
        source: path or URL. It is one delta if it ends with ``.delta`` or is a file; otherwise a folder.
        wait: function that waits for a number of seconds between two tries.

    Raises:
        InputError: there is no such folder, or no library for such a URL.
    """

    def __init__(self, source: str, wait: Callable[[float], None] = sleep) -> None:
        self._source, self._wait = source, wait
        self._local = "://" not in source
        self.shown = source if self._local else shown_server(source)
        """Source as messages may show it."""
        path = source if self._local else urlsplit(source).path
        self.is_file = path.endswith(_SUFFIX) or (self._local and Path(source).is_file())
        """Whether the source is one delta."""
        if self._local and not self.is_file and not Path(source).is_dir():
            raise InputError(f"{source}: is no delta and no folder of deltas")
        self._files = _file_system(source, self.shown)

    def file(self, name: str) -> RemoteFile:
        """Return a file of the folder, or the only one of a source that is a delta."""
        address = self._source if self.is_file else self._inside(name)
        shown = self.shown if self.is_file else f"{self.shown.rstrip('/')}/{name}"
        return RemoteFile(self._files, self._files._strip_protocol(address), shown, self._wait)

    def _inside(self, name: str) -> str:
        if not self._source.startswith(("http://", "https://")):
            return f"{self._source.rstrip('/')}/{name}"
        # What follows the path may be a key that every request needs.
        parts = urlsplit(self._source)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment=""))


class RemoteFile:
    """File of a store, of which ranges can be read; each is tried several times.

    Args:
        files: file system of fsspec.
        path: path of the file in it.
        where: name of the file for error messages.
        wait: function that waits for a number of seconds between two tries.
    """

    def __init__(self, files: Any, path: str, where: str, wait: Callable[[float], None]) -> None:
        self._files, self._path, self.where, self._wait = files, path, where, wait
        self._open: Any = None
        self._at = 0

    def exists(self) -> bool:
        """Return whether the store has the file.

        Raises:
            BackendError: the store does not answer, or gives no access.
            InputError: the store has no such bucket.
        """
        return bool(self._try(self._opened))

    def read(self, size: int, /) -> bytes:
        """Return the next bytes of the file; fewer than ``size`` at its end.

        Raises:
            BackendError: the store does not answer, has no such file, or gives no access.
            InputError: the store has no such bucket.
        """
        data: bytes | None = self._try(lambda: self._range(self._at, size))
        if data is None:
            raise BackendError(f"{self.where}: is not there any more")
        self._at += len(data)
        return data

    def seek(self, at: int) -> None:
        """Have the next :meth:`read` begin at an offset in bytes."""
        self._at = at

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _opened(self) -> Any:
        if self._open is None:
            # Without a cache: what is read goes to a file at once.
            self._open = self._files.open(self._path, "rb", cache_type="none")
        return self._open

    def _range(self, begin: int, size: int) -> bytes:
        file = self._opened()
        pieces, got = [], 0
        if file.tell() != begin:
            file.seek(begin)
        while got < size and (piece := file.read(size - got)):
            pieces.append(piece)
            got += len(piece)
        return b"".join(pieces)

    def _try(self, action: Callable[[], Any]) -> Any:
        """Return what an action returns, tried several times; None if there is no such file."""
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                self._wait(_PAUSE_S * 2 ** (attempt - 1))
            try:
                return action()
            except FileNotFoundError as error:
                if _lacks_bucket(error):
                    raise InputError(f"{self.where}: there is no such bucket") from error
                if _is_missing(error):
                    return None
                reason = shown_reason(error.__cause__ or error)
                self._forget()
            # Each library has errors of its own.
            except Exception as error:
                reason = shown_reason(error)
                if isinstance(error, PermissionError) or type(error).__name__ in _NO_KEYS:
                    raise BackendError(f"{self.where}: no access: {reason}") from error
                self._forget()
        raise BackendError(f"{self.where}: no answer: {reason}")

    def _forget(self) -> None:
        """Drop a connection that failed."""
        file, self._open = self._open, None
        try:
            if file is not None:
                file.close()
        except Exception:
            return


def _is_missing(error: FileNotFoundError) -> bool:
    """Return whether a file is missing: fsspec says so of HTTP servers that fail in any other way, too."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if status is not None:
        return status in _GONE
    failed = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    return isinstance(cause, FileNotFoundError) or not failed


def _lacks_bucket(error: FileNotFoundError) -> bool:
    """Return whether an S3-compatible store says that it does not have the bucket of a file."""
    response: dict[str, Any] = getattr(error.__cause__, "response", None) or {}
    return bool(response.get("Error", {}).get("Code") == "NoSuchBucket")


def _file_system(source: str, shown: str) -> Any:
    """Return the file system of fsspec for a path or URL.

    Raises:
        MissingExtraError: fsspec, or its library for such a URL, is not installed.
        InputError: fsspec knows no such URL.
    """
    options: dict[str, Any] = {}
    try:
        import fsspec

        if source.startswith(("http://", "https://")):
            import aiohttp

            options["client_kwargs"] = {
                "timeout": aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
            }
        elif source.startswith(("s3://", "s3a://")):
            # A range is tried several times here; botocore's own tries would make each of these ten seconds long.
            options["config_kwargs"] = {"retries": {"max_attempts": 0}}
        return fsspec.core.url_to_fs(source, skip_instance_cache=True, **options)[0]
    except ImportError as error:
        raise MissingExtraError("gemel pull", "pull") from error
    except ValueError as error:
        raise InputError(f"{shown}: cannot be read: {shown_reason(error)}") from error

"""Reading of samples from a folder of this machine, or from a store that fsspec knows."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...bundles.addresses import shown_reason, shown_server
from ...bundles.manifest import MOST_PIXELS
from ...errors import BackendError, InputError, MissingExtraError, first_line
from ...frames.frame import Image
from .sample_record import PICTURE_SUFFIX, RECORD_SUFFIX, SampleRecord, parse_record

__all__ = ["DamagedSampleError", "SampleStore", "StoredSample", "open_samples"]

_MOST_BYTES = 256 << 20
"""Maximum bytes of one file of a sample that is read."""


class DamagedSampleError(Exception):
    """Error about a sample whose files are missing, cut off, changed or of another format."""


@dataclass(frozen=True)
class StoredSample:
    """Sample of which the record was read; its picture is read when it is asked for."""

    name: str
    """Name of the sample's record in the folder or store."""
    record: SampleRecord
    store: SampleStore

    def image(self) -> Image:
        """Read the sampled frame, ``[H, W, 3]`` BGR, and compare it with what the record says of it.

        Raises:
            BackendError: the store does not answer, or gives no access.
            DamagedSampleError: the picture is missing, was cut off or changed, or is no JPEG of the stated size.
        """
        record = self.record
        if record.size[0] * record.size[1] > MOST_PIXELS:
            raise DamagedSampleError(f"{self.name}: {record.size[0]} x {record.size[1]} pixels are too many")
        data = self.store.content(record.image)
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise DamagedSampleError(f"{record.image}: was cut off or changed: its SHA-256 is not that of the record")
        try:
            found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            found = None
        if found is None or found.shape[:2] != record.size:
            raise DamagedSampleError(f"{record.image}: is no JPEG of {record.size[0]} x {record.size[1]} pixels")
        return np.asarray(found, np.uint8)


class SampleStore:
    """Folder of samples, on this machine or in a store.

    Args:
        shown: the folder's name, for messages.
        folder: folder of this machine; None for a folder of a store.
        store: file system of fsspec, and the path in it; None for a folder of this machine.
    """

    def __init__(self, shown: str, folder: Path | None, store: tuple[Any, str] | None = None) -> None:
        self.shown, self._folder, self._store = shown, folder, store

    def names(self) -> list[str]:
        """Return the names of all records, sorted.

        Raises:
            BackendError: the store does not answer, or gives no access.
            InputError: there is no such folder, or it cannot be listed.
        """
        try:
            if self._folder is not None:
                found = [path.name for path in self._folder.iterdir()]
            else:
                assert self._store is not None
                store, root = self._store
                store.invalidate_cache()
                found = [path.rpartition("/")[2] for path in store.ls(root, detail=False)]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{self.shown}: there is no such folder") from error
        except Exception as error:
            # Stores raise exceptions of their own libraries, of no common class.
            kind = BackendError if self._folder is None else InputError
            raise kind(f"{self.shown}: cannot be listed: {shown_reason(error)}") from error
        return sorted(name for name in found if name.endswith(RECORD_SUFFIX) and name[0] != ".")

    def read(self, name: str) -> StoredSample:
        """Read the record of a sample.

        Raises:
            BackendError: the store does not answer, or gives no access.
            DamagedSampleError: the record is missing, cut off or of another format.
        """
        try:
            record = parse_record(self.content(name))
        except ValueError as error:
            raise DamagedSampleError(f"{name}: {first_line(error)}") from error
        if not record.image.endswith(PICTURE_SUFFIX):
            raise DamagedSampleError(f"{name}: {record.image!r} is no picture of a sample")
        return StoredSample(name, record, self)

    def content(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            BackendError: the store does not answer, or gives no access.
            DamagedSampleError: the file is missing, cannot be read, or is far too large for a sample.
        """
        try:
            if self._folder is not None:
                with (self._folder / name).open("rb") as file:
                    data = file.read(_MOST_BYTES + 1)
            else:
                assert self._store is not None
                store, root = self._store
                data = store.cat_file(f"{root}/{name}", end=_MOST_BYTES + 1)
        except Exception as error:
            # A sample is damaged for ever; a store that is away comes back.
            if self._folder is None and not isinstance(error, FileNotFoundError):
                raise BackendError(f"{self.shown}/{name}: cannot be read: {shown_reason(error)}") from error
            raise DamagedSampleError(f"{name}: cannot be read: {type(error).__name__}: {first_line(error)}") from error
        if len(data) > _MOST_BYTES:
            raise DamagedSampleError(f"{name}: is larger than {_MOST_BYTES} bytes")
        return bytes(data)


def open_samples(where: str) -> SampleStore:
    """Open a folder of samples.

    Args:
        where: path of a folder, or an address such as ``s3://bucket/box7``.

    Raises:
        InputError: the address cannot be used.
        MissingExtraError: the folder is in a store, and fsspec is not installed.
    """
    if not re.match(r"[A-Za-z][\w+.-]*://", where):
        return SampleStore(where, Path(where).expanduser())
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{shown_server(where)}", "pull") from error
    try:
        store, root = url_to_fs(where)
    except Exception as error:
        raise InputError(f"{shown_server(where)}: {shown_reason(error)}") from error
    return SampleStore(shown_server(where), None, (store, root.rstrip("/")))

"""Making of a bundle from an old one and a delta, in an empty folder; every file is verified by its hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ..errors import BundleError
from .blob import PAGE
from .consistency import check_spans
from .delta_format import DeltaHeader
from .delta_reader import PartReader
from .manifest import FileSpec, Manifest, TensorSpec
from .reader import MANIFEST, Bundle, decode_manifest
from .tensor_forms import TensorForm, fits_form, restore_tensor
from .zstd_frames import MOST_PREFIX

__all__ = ["build_bundle", "hash_zeros", "in_blob_order", "reader_of", "short_id"]

_CHUNK = 1 << 20
"""Bytes that are copied or hashed at once."""
_ZEROS = bytes(_CHUNK)


def build_bundle(file: BinaryIO, header: DeltaHeader, old: Bundle, work: Path, where: str) -> tuple[int, int]:
    """Write the bundle that a delta makes into an empty folder; return the bytes of new tensors and of kept ones.

    Args:
        file: the delta, which stands behind its header.
        header: header of the delta.
        old: bundle that the delta starts from.
        work: empty folder for the new bundle.
        where: name of the delta, for error messages.

    Raises:
        BundleError: the delta is damaged or not consistent, or a file of the old bundle is damaged.
        OSError: a file cannot be read or written.
    """
    return _Building(file, header, old, work, where).build()


def in_blob_order(content: Manifest) -> list[tuple[str, TensorSpec]]:
    """Return the tensors of a bundle, each with its id, in the order in which they lie in the blob."""
    return sorted(content.tensors.items(), key=lambda item: (item[1].offset, item[1].length, item[0]))


class _Building:
    """Making of one new bundle in a work folder.

    Args:
        file: the delta, which stands behind its header.
        header: header of the delta.
        old: bundle that the delta starts from.
        work: empty folder for the new bundle.
        where: name of the delta, for error messages.
    """

    def __init__(self, file: BinaryIO, header: DeltaHeader, old: Bundle, work: Path, where: str) -> None:
        self._file, self._header, self._old, self._work, self._where = file, header, old, work, where
        self._new_bytes = self._kept_bytes = 0

    def build(self) -> tuple[int, int]:
        """Write all files of the new bundle; return the bytes of new and of kept tensors."""
        content = self._manifest()
        parts = {part.name: part for part in self._header.parts[1:]}
        last = next(reversed(parts), None)
        for name in parts:
            if name not in content.files or (name == content.blob and name != last):
                raise BundleError(f"{self._where}: {name} is not expected among its parts")
        have = self._unchanged()
        for name, spec in content.files.items():
            if name not in parts and name != content.blob:
                source = have.get((spec.sha256, spec.bytes))
                if source is None:
                    raise BundleError(f"{self._where}: lacks {name}, which the old bundle does not have")
                with self._old.file(source).open("rb") as before:
                    self._write(name, spec, iter(partial(before.read, _CHUNK), b""))
        for name, part in parts.items():
            if name != content.blob:
                reader = PartReader(self._file, part, self._where, self._prefix(part.like))
                self._write(name, content.files[name], reader.pieces())
        self._write_blob(content)
        if self._file.read(1):
            raise BundleError(f"{self._where}: goes on behind its end")
        return self._new_bytes, self._kept_bytes

    def _manifest(self) -> Manifest:
        """Write the manifest of the new bundle, and return its content."""
        part = self._header.parts[0]
        data = b"".join(PartReader(self._file, part, self._where, self._prefix(part.like)).pieces())
        if hashlib.sha256(data).hexdigest() != self._header.makes:
            raise BundleError(f"{self._where}: its {MANIFEST} is not that of the bundle {short_id(self._header.makes)}")
        content = decode_manifest(data, f"{self._where}: {MANIFEST}")
        with (self._work / MANIFEST).open("xb") as out:
            _put(out, data)
        return content

    def _unchanged(self) -> dict[tuple[str, int], str]:
        """Return (SHA-256, size) -> name of the old bundle's files except the blob."""
        old = self._old.manifest
        return {(spec.sha256, spec.bytes): name for name, spec in old.files.items() if name != old.blob}

    def _prefix(self, name: str | None) -> bytes:
        """Return the content of the old file that a part was compressed against."""
        if name is None:
            return b""
        path = self._old.path / MANIFEST if name == MANIFEST else self._old.file(name)
        with path.open("rb") as file:
            data = file.read(MOST_PREFIX + 1)
        if len(data) > MOST_PREFIX:
            raise BundleError(f"{self._where}: is compressed against {name}, which is larger than {MOST_PREFIX} bytes")
        return data

    def _write(self, name: str, spec: FileSpec, pieces: Iterator[bytes]) -> None:
        """Write a file of the new bundle.

        Raises:
            BundleError: its content is not what the manifest says.
        """
        digest, size = hashlib.sha256(), 0
        with (self._work / name).open("xb") as out:
            for piece in pieces:
                size += len(piece)
                if size > spec.bytes:
                    break
                digest.update(piece)
                _put(out, piece)
        self._check(name, spec, size, digest.hexdigest())

    def _write_blob(self, content: Manifest) -> None:
        """Write the blob of the new bundle: tensors of the old blob and those of the delta. Padding becomes holes."""
        spec = content.files.get(content.blob)
        if spec is None:
            raise BundleError(f"{self._where}: the blob {content.blob!r} is not among the files of the manifest")
        check_spans(f"{self._where}: {MANIFEST}", spec.bytes, content.tensors, content.segments)
        data = sum(tensor.length for tensor in content.tensors.values())
        if spec.bytes > 2 * data + 3 * PAGE * (len(content.segments) + 1):
            raise BundleError(f"{self._where}: {content.blob} has {spec.bytes} bytes for {data} bytes of tensors")
        part = next((part for part in self._header.parts[1:] if part.name == content.blob), None)
        reader = None if part is None else PartReader(self._file, part, self._where)
        digest, position = hashlib.sha256(), 0
        with (
            (self._work / content.blob).open("xb") as out,
            self._old.file(self._old.manifest.blob).open("rb") as before,
        ):
            for name, tensor in in_blob_order(content):
                if tensor.offset < position or tensor.offset + tensor.length > spec.bytes:
                    raise BundleError(f"{self._where}: tensor {name} overlaps another one, or the end of the blob")
                hash_zeros(digest, tensor.offset - position)
                out.seek(tensor.offset)
                position = tensor.offset
                for piece in self._pieces(name, tensor, reader, before.fileno()):
                    digest.update(piece)
                    _put(out, piece)
                    position += len(piece)
            hash_zeros(digest, spec.bytes - position)
            out.truncate(spec.bytes)
        if reader is not None:
            reader.end()
        self._check(content.blob, spec, spec.bytes, digest.hexdigest())

    def _pieces(self, name: str, spec: TensorSpec, reader: PartReader | None, blob: int) -> Iterator[bytes]:
        """Yield the bytes of one tensor: those of the old blob, or those that the delta carries."""
        kept = self._old.manifest.tensors.get(name)
        if kept is not None:
            if (kept.dtype, kept.shape, kept.length) != (spec.dtype, spec.shape, spec.length):
                raise BundleError(f"{self._where}: tensor {name} has another shape than in the old bundle")
            self._kept_bytes += spec.length
            read = reader_of(blob, kept)
            yield from (read(at, min(_CHUNK, spec.length - at)) for at in range(0, spec.length, _CHUNK))
            return
        if reader is None:
            raise BundleError(f"{self._where}: lacks tensor {name}, which the old bundle does not have")
        form, base = self._form(name)
        old = None
        if base is not None:
            source = self._old.manifest.tensors.get(base)
            if source is None or not fits_form(spec, form, source):
                raise BundleError(f"{self._where}: tensor {name} is a change of {base}, which does not fit")
            old = reader_of(blob, source)
        self._new_bytes += spec.length
        yield from restore_tensor(spec, form, reader.read, old)

    def _form(self, tensor: str) -> tuple[TensorForm, str | None]:
        """Return the form in which the delta carries a tensor, and the old tensor that the form needs."""
        if tensor in self._header.steps:
            return "steps", self._header.steps[tensor]
        if tensor in self._header.bits:
            return "bits", self._header.bits[tensor]
        return "plain", None

    def _check(self, name: str, spec: FileSpec, size: int, digest: str) -> None:
        """Check a written file. Frames were checked when they were read, so the old bundle may be the damaged one.

        Raises:
            BundleError: size or SHA-256 are not those of the manifest.
        """
        if (size, digest) != (spec.bytes, spec.sha256):
            raise BundleError(
                f"{self._where}: {name} would not be as its manifest says; is {self._old.path} damaged?"
                " gemel check --integrity tells"
            )


def reader_of(blob: int, spec: TensorSpec) -> Callable[[int, int], bytes]:
    """Return a function that reads bytes of one tensor of an open blob."""

    def read(begin: int, size: int) -> bytes:
        data = os.pread(blob, size, spec.offset + begin)
        if len(data) < size:
            raise BundleError("the blob of the old bundle was shortened while a delta was applied")
        return data

    return read


def hash_zeros(digest: hashlib._Hash, count: int) -> None:
    """Add the padding of a blob, ``count`` bytes of zeros, to a hash."""
    for at in range(0, count, _CHUNK):
        digest.update(_ZEROS[: min(_CHUNK, count - at)])


def _put(out: BinaryIO, data: bytes) -> None:
    out.write(data)


def short_id(bundle_id: str) -> str:
    """Return the beginning of a bundle's id, for messages."""
    return bundle_id[:12]

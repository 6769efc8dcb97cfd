"""Format of a delta: one file that turns one bundle into another one.

A delta is a prelude (magic, size of the header, signature, SHA-256 of signature and header), the header as JSON, and
frames of compressed data one after another. The header names the bundle that a delta starts from, the one it makes, and
the size and SHA-256 of every frame. So a reader knows all sizes before it decompresses anything, and a signature of the
header is one of the whole file.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field, ValidationError, field_validator

from ..errors import BundleError
from .reader import MANIFEST
from .signature import NO_SIGNATURE, SIGNATURE_BYTES, is_signed_by
from .stage_specs import Id, Sha256, flat_name
from .value import Value, problem
from .zstd_frames import MOST_FRAME, most_packed

__all__ = [
    "DELTA_VERSION",
    "PRELUDE_BYTES",
    "DeltaHeader",
    "DeltaPart",
    "PackedFrame",
    "StoredHeader",
    "delta_name",
    "header_json",
    "pack_header",
    "read_header",
    "signed_text",
]

_MAGIC = b"gemel delta\n"
_PRELUDE = struct.Struct(f"<{len(_MAGIC)}sQ{SIGNATURE_BYTES}s32s")
PRELUDE_BYTES = _PRELUDE.size
"""Size in bytes of what stands before the header of a delta."""
DELTA_VERSION = "1.0"
"""Version of the format of deltas that this gemel writes; a newer major version is refused."""
_MOST_HEADER = 64 << 20
"""Maximum size in bytes of the header of a delta. Headers list about 100 bytes for 4 MiB of data."""
_MOST_MANIFEST = 64 << 20
"""Maximum size in bytes of the manifest in a delta, which is held in memory."""
_NAME_DIGITS = 32
"""Number of hexadecimal digits of a bundle's id that name the delta that starts from it."""


class PackedFrame(Value):
    """Frame of compressed data in a delta."""

    bytes: Annotated[int, Field(strict=True, ge=1, le=MOST_FRAME)]
    """Size of a frame's content in bytes."""
    packed: Annotated[int, Field(strict=True, ge=1, le=most_packed(MOST_FRAME))]
    """Size of a frame in the file, in bytes."""
    sha256: Sha256
    """SHA-256 of a frame as it stands in the file."""


class DeltaPart(Value):
    """File of the new bundle that a delta carries, or of the blob only the tensors that are new."""

    name: str
    like: str | None = None
    """Name of the old bundle's file that the only frame was compressed against; None if there is none."""
    frames: tuple[PackedFrame, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the part's content."""
        return sum(frame.bytes for frame in self.frames)

    @field_validator("name", "like")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        return None if value is None else flat_name(value)


class DeltaHeader(Value):
    """Header of a delta: what it starts from, what it makes, and everything that it carries."""

    schema_version: str
    producer: dict[str, str]
    base: Sha256
    """Id of the bundle that a delta starts from: the SHA-256 of its manifest."""
    makes: Sha256
    """Id of the bundle that a delta makes."""
    parts: tuple[DeltaPart, ...]
    """Manifest, changed files, and the blob's new tensors, in the order of their frames."""
    bits: dict[Id, Id] = Field(default={})
    """New tensor -> old tensor, for new tensors in the encoding ``bits``."""
    steps: dict[Id, Id] = Field(default={})
    """New tensor -> old tensor, for new tensors in the encoding ``steps``."""

    @property
    def frames(self) -> Iterator[PackedFrame]:
        """All frames in the order in which they stand in the file."""
        return (frame for part in self.parts for frame in part.frames)


class _Readable(Protocol):
    """File, here or in a store, that can be read from where it stands."""

    def read(self, size: int, /) -> bytes:
        """Return the next ``size`` bytes; fewer at the end."""


@dataclass(frozen=True)
class StoredHeader:
    """Header of a delta as it stands in a file, with the bytes before it."""

    content: DeltaHeader
    data: bytes
    """Prelude and header. Two deltas with equal ones are equal."""

    @property
    def bytes(self) -> int:
        """Size in bytes of the whole file."""
        return len(self.data) + sum(frame.packed for frame in self.content.frames)


def delta_name(bundle_id: str) -> str:
    """Return the name, in a folder of deltas, of the one that starts from a bundle: so none has to list the folder."""
    return f"{bundle_id[:_NAME_DIGITS]}.delta"


def signed_text(header: bytes) -> bytes:
    """Return what a signature of a delta signs, given the header as JSON: nothing else that is signed begins so."""
    return _MAGIC + header


def pack_header(content: DeltaHeader, signature: bytes = NO_SIGNATURE) -> bytes:
    """Return prelude and header of a delta."""
    header = header_json(content)
    digest = hashlib.sha256(signature + header).digest()
    return _PRELUDE.pack(_MAGIC, len(header), signature, digest) + header


def header_json(content: DeltaHeader) -> bytes:
    """Return the header of a delta as it stands in the file."""
    return json.dumps(content.model_dump(exclude_defaults=True), separators=(",", ":")).encode()


def read_header(file: _Readable, where: str, key: bytes | None = None) -> StoredHeader:
    """Read the beginning of a delta.

    Args:
        file: file that is read from where it stands.
        where: name of the delta, for error messages.
        key: public ed25519 key whose signature the delta must have; None for none.

    Raises:
        BundleError: the file is no delta, is cut off, damaged, too new, not signed with the key, or not consistent.
        OSError: the file cannot be read.
    """
    prelude = file.read(PRELUDE_BYTES)
    if prelude[: len(_MAGIC)] != _MAGIC[: len(prelude)] or not prelude:
        raise BundleError(f"{where}: is not a delta; gemel diff writes one")
    if len(prelude) < PRELUDE_BYTES:
        raise BundleError(f"{where}: is cut off: has {len(prelude)} bytes")
    _, size, signature, digest = _PRELUDE.unpack(prelude)
    if size > _MOST_HEADER:
        raise BundleError(f"{where}: is damaged: a header of {size} bytes")
    header = file.read(size)
    if len(header) < size:
        raise BundleError(f"{where}: is cut off: has {PRELUDE_BYTES + len(header)} bytes")
    if hashlib.sha256(signature + header).digest() != digest:
        raise BundleError(f"{where}: is damaged: the header has another sha256 than expected")
    if key is not None and not is_signed_by(key, signature, signed_text(header)):
        lacks = "is not signed" if signature == NO_SIGNATURE else "is signed with another key"
        raise BundleError(f"{where}: {lacks}; the key that was given is required")
    content = _parse(header, where)
    _check(content, where)
    return StoredHeader(content, prelude + header)


def _parse(header: bytes, where: str) -> DeltaHeader:
    try:
        document = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: the header is not JSON") from error
    version = str(document.get("schema_version")) if isinstance(document, dict) else ""
    if version.partition(".")[0] != DELTA_VERSION.partition(".")[0]:
        raise BundleError(f"{where}: schema_version {version!r:.40} cannot be read by this gemel; upgrade gemel")
    try:
        return DeltaHeader.model_validate(document)
    except ValidationError as error:
        raise BundleError(f"{where}: {problem(error)}") from error


def _check(content: DeltaHeader, where: str) -> None:
    """Check what the header says beyond the types of its fields.

    Raises:
        BundleError: the parts are not those of a delta.
    """
    names = [part.name for part in content.parts]
    if names[:1] != [MANIFEST] or len({*names}) != len(names):
        raise BundleError(f"{where}: its parts are not {MANIFEST} and other files, each once")
    if content.parts[0].bytes > _MOST_MANIFEST:
        raise BundleError(f"{where}: {MANIFEST} has {content.parts[0].bytes} bytes, at most {_MOST_MANIFEST} are read")
    for part in content.parts:
        if part.like is not None and len(part.frames) != 1:
            raise BundleError(f"{where}: {part.name} is compressed against a file, but has {len(part.frames)} frames")
    for frame in content.frames:
        if frame.packed > most_packed(frame.bytes):
            raise BundleError(f"{where}: a frame of {frame.packed} bytes for {frame.bytes} bytes of data")
    if both := content.bits.keys() & content.steps.keys():
        raise BundleError(f"{where}: tensor {min(both)} has two encodings")

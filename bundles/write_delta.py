"""Writing of a delta between two bundles: what the receiver of the new bundle lacks, compressed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..durable import place_file, work_folder
from ..errors import BundleError, InputError
from ..version import find_version
from .build_bundle import hash_zeros, in_blob_order, reader_of
from .delta_format import (
    DELTA_VERSION,
    DeltaHeader,
    DeltaPart,
    PackedFrame,
    delta_name,
    header_json,
    pack_header,
    signed_text,
)
from .manifest import TensorSpec
from .matching_tensors import matching_tensors
from .reader import MANIFEST, Bundle, verify
from .rounded_bundle import Rounded
from .signature import NO_SIGNATURE, sign
from .tensor_encodings import TensorEncoding, encode_tensor, fits_encoding
from .zstd_frames import MOST_FRAME, MOST_PREFIX, compress

__all__ = ["WrittenDelta", "write_delta"]

_FILE_LEVEL, _TENSOR_LEVEL = 19, 9
"""Compression levels of files and of tensors; weights get no smaller at a higher one."""
_LEAST = 4096
"""Size in bytes below which a tensor is not compared with old ones: its entry would outweigh the saving."""
_SAMPLE = 1 << 18
"""Bytes of a tensor that are compressed to find the smaller of two encodings."""
_GAIN = 0.98
"""Part of the bytes of a plain tensor that a change must stay below to be sent instead."""


@dataclass(frozen=True)
class WrittenDelta:
    """Result of writing a delta."""

    path: Path
    base: str
    """Id of the bundle that the delta starts from."""
    makes: str
    """Id of the bundle that the delta makes."""
    bytes: int
    """Size of the delta."""
    tensor_bytes: int
    """Bytes of the new bundle's tensors that the old one lacks."""
    tensors: int
    """Number of the new bundle's tensors that the old one lacks."""
    kept_bytes: int
    """Bytes of the new bundle's tensors that the old one has."""
    encodings: dict[TensorEncoding, int]
    """Encoding -> bytes of the tensors that are sent in it, before any compression."""
    part_bytes: dict[str, int]
    """File of the bundle -> bytes in the delta."""


def write_delta(
    old: Bundle, new: Bundle, output: Path, *, rounded: Rounded | None = None, key: Path | None = None
) -> WrittenDelta:
    """Write the delta that turns one bundle into another one.

    Args:
        old: bundle that the delta starts from.
        new: bundle that the delta makes.
        output: file to write; in a folder, the file gets the name under which ``gemel pull`` looks for it.
        rounded: what ``new`` was made of, if its changes are rounded; see :mod:`.rounded_bundle`.
        key: PEM file with the private key that signs the delta; None to sign nothing.

    Raises:
        InputError: both are the same bundle, or the key cannot be used.
        BundleError: a bundle is damaged, or its blob has other bytes than tensors, or the output cannot be written.
    """
    if old.id == new.id:
        raise InputError(f"{old.path} and {new.path} are the same bundle; there is nothing to send")
    # The new blob is compared with its hash while its tensors are read.
    for bundle, without in ((old, ()), (new, {new.manifest.blob})):
        for _ in verify(bundle, without):
            pass
    path = output / delta_name(old.id) if output.is_dir() else output
    try:
        with work_folder(path, f".{path.name}-") as work, (work / "frames").open("w+b") as frames:
            writer = _Writer(old, new, rounded, frames)
            writer.write()
            content = writer.header()
            signature = NO_SIGNATURE if key is None else sign(key, signed_text(header_json(content)))
            with (work / "delta").open("xb") as out:
                out.write(pack_header(content, signature))
                frames.seek(0)
                shutil.copyfileobj(frames, out, MOST_FRAME)
                size = out.tell()
            place_file(work / "delta", path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written: {error.strerror}") from error
    sizes = {part.name: sum(frame.packed for frame in part.frames) for part in content.parts}
    return WrittenDelta(path, old.id, new.id, size, *writer.counts(), writer.encodings, sizes)


@dataclass
class _Writer:
    """Writing of the frames of a delta into a file."""

    old: Bundle
    new: Bundle
    rounded: Rounded | None
    out: BinaryIO
    encodings: dict[TensorEncoding, int] = field(default_factory=dict)
    _parts: list[DeltaPart] = field(default_factory=list)
    _bits: dict[str, str] = field(default_factory=dict)
    _steps: dict[str, str] = field(default_factory=dict)
    _new: int = 0
    _kept_bytes: int = 0

    def write(self) -> None:
        """Write all frames."""
        old, new = self.old.manifest, self.new.manifest
        self._add_file(MANIFEST, self.new.path / MANIFEST, self.old.path / MANIFEST)
        have = {(spec.sha256, spec.bytes) for name, spec in old.files.items() if name != old.blob}
        for name, spec in new.files.items():
            if name != new.blob and (spec.sha256, spec.bytes) not in have:
                like = self.old.file(name) if name in old.files and name != old.blob else None
                self._add_file(name, self.new.file(name), like)
        self._add_blob()

    def header(self) -> DeltaHeader:
        """Return the header for the frames that were written."""
        return DeltaHeader(
            schema_version=DELTA_VERSION,
            producer={"gemel": find_version()},
            base=self.old.id,
            makes=self.new.id,
            parts=tuple(self._parts),
            bits=self._bits,
            steps=self._steps,
        )

    def counts(self) -> tuple[int, int, int]:
        """Return the bytes of new tensors, their number, and the bytes of kept tensors."""
        return sum(self.encodings.values()), self._new, self._kept_bytes

    def _add_file(self, name: str, path: Path, like: Path | None) -> None:
        """Add a file of the new bundle, as a difference from an old file where both are small."""
        prefix = b""
        if like is not None and path.stat().st_size <= MOST_FRAME and like.stat().st_size <= MOST_PREFIX:
            prefix = like.read_bytes()
        with path.open("rb") as file:
            frames = [self._frame(data, _FILE_LEVEL, prefix) for data in iter(lambda: file.read(MOST_FRAME), b"")]
        self._parts.append(DeltaPart(name=name, like=like.name if like and prefix and frames else None, frames=frames))

    def _add_blob(self) -> None:
        """Add the tensors that the old bundle lacks.

        Raises:
            BundleError: the blob has bytes beside its tensors, so it cannot be made of them.
        """
        content = self.new.manifest
        waiting, frames = bytearray(), []
        for piece in self._tensors():
            waiting += piece
            while len(waiting) >= MOST_FRAME:
                frames.append(self._frame(bytes(waiting[:MOST_FRAME]), _TENSOR_LEVEL))
                del waiting[:MOST_FRAME]
        if waiting:
            frames.append(self._frame(bytes(waiting), _TENSOR_LEVEL))
        if frames:
            self._parts.append(DeltaPart(name=content.blob, frames=tuple(frames)))

    def _tensors(self) -> Iterator[bytes]:
        """Yield the new tensors in their encodings; check meanwhile that the blob holds nothing but tensors."""
        content, old = self.new.manifest, self.old.manifest
        spec, digest, position = content.files[content.blob], hashlib.sha256(), 0
        candidates = matching_tensors(self.old, self.new)
        unrounded = self.new if self.rounded is None else self.rounded.source
        with (
            self.new.file(content.blob).open("rb") as blob,
            self.old.file(old.blob).open("rb") as before,
            unrounded.file(content.blob).open("rb") as exact,
        ):
            for name, tensor in in_blob_order(content):
                hash_zeros(digest, tensor.offset - position)
                read = reader_of(blob.fileno(), tensor)
                for at in range(0, tensor.length, MOST_FRAME):
                    digest.update(read(at, min(MOST_FRAME, tensor.length - at)))
                position = tensor.offset + tensor.length
                if name in old.tensors:
                    self._kept_bytes += tensor.length
                    continue
                encoding, base = self._encoding(name, tensor, read, candidates.get(name, ()), before.fileno())
                self.encodings[encoding] = self.encodings.get(encoding, 0) + tensor.length
                self._new += 1
                if encoding == "steps":
                    # The steps of a sum that was rounded would be other ones.
                    read = reader_of(exact.fileno(), tensor)
                source = None if base is None else reader_of(before.fileno(), old.tensors[base])
                yield from encode_tensor(tensor, encoding, read, source)
            hash_zeros(digest, spec.bytes - position)
        if digest.hexdigest() != spec.sha256:
            for _ in verify(self.new):
                pass
            raise BundleError(f"{self.new.file(content.blob)}: has bytes beside its tensors, so no delta can make it")

    def _encoding(
        self, name: str, spec: TensorSpec, read: Callable[[int, int], bytes], candidates: tuple[str, ...], old_blob: int
    ) -> tuple[TensorEncoding, str | None]:
        """Return the encoding of a new tensor, and the old tensor that it needs: the smaller of the exact encodings."""
        if self.rounded is not None and name in self.rounded.bases:
            self._steps[name] = self.rounded.bases[name]
            return "steps", self._steps[name]
        if spec.length < _LEAST:
            return "plain", None
        size = min(_SAMPLE, spec.length)
        sample = spec.model_copy(update={"length": size})

        def packed(encoding: TensorEncoding, old: Callable[[int, int], bytes] | None = None) -> int:
            return len(compress(b"".join(encode_tensor(sample, encoding, read, old)), 1))

        least, best = _GAIN * packed("plain"), None
        for base in candidates:
            source = self.old.manifest.tensors[base]
            if fits_encoding(spec, "bits", source) and (found := packed("bits", reader_of(old_blob, source))) < least:
                least, best = found, base
        if best is None:
            return "plain", None
        self._bits[name] = best
        return "bits", best

    def _frame(self, data: bytes, level: int, prefix: bytes = b"") -> PackedFrame:
        """Compress and write a frame; return its entry in the header."""
        packed = compress(data, level, prefix)
        self.out.write(packed)
        return PackedFrame(bytes=len(data), packed=len(packed), sha256=hashlib.sha256(packed).hexdigest())

"""Reader of the parts of a delta: one frame in memory at a time, each checked before its content is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import BundleError
from .delta_format import DeltaPart, PackedFrame
from .zstd_frames import decompress

__all__ = ["PartReader"]


class PartReader:
    """Content of one part of a delta, in order.

    Args:
        file: the delta, which stands at the part's first frame. Parts must be read in the order of the header.
        part: the part's entry in the header.
        where: name of the delta, for error messages.
        prefix: content of the old file that the part was compressed against.
    """

    def __init__(self, file: BinaryIO, part: DeltaPart, where: str, prefix: bytes = b"") -> None:
        self._file, self._part, self._where, self._prefix = file, part, where, prefix
        self._frames = iter(part.frames)
        self._data, self._at = b"", 0

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes of the part.

        Raises:
            BundleError: the delta is cut off or damaged, or the part has fewer bytes.
        """
        pieces: list[bytes] = []
        while size:
            if self._at == len(self._data):
                self._data, self._at = self._next(), 0
            piece = self._data[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def pieces(self) -> Iterator[bytes]:
        """Yield the content of a part of which nothing was read yet, frame by frame.

        Raises:
            BundleError: the delta is cut off or damaged.
        """
        yield from (self._unpacked(frame) for frame in self._frames)

    def end(self) -> None:
        """Check that the whole part was read.

        Raises:
            BundleError: bytes are left.
        """
        if self._at < len(self._data) or next(self._frames, None) is not None:
            raise BundleError(f"{self._where}: {self._part.name} has more data than the new bundle takes")

    def _next(self) -> bytes:
        frame = next(self._frames, None)
        if frame is None:
            raise BundleError(f"{self._where}: {self._part.name} has less data than the new bundle takes")
        return self._unpacked(frame)

    def _unpacked(self, frame: PackedFrame) -> bytes:
        packed = self._file.read(frame.packed)
        if len(packed) < frame.packed:
            raise BundleError(f"{self._where}: is cut off in {self._part.name}")
        if hashlib.sha256(packed).hexdigest() != frame.sha256:
            raise BundleError(f"{self._where}: is damaged in {self._part.name}: other sha256 than the header says")
        try:
            return decompress(packed, frame.bytes, self._prefix)
        except ValueError as error:
            raise BundleError(f"{self._where}: is damaged in {self._part.name}: {error}") from error

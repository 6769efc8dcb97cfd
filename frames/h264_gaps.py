"""Detection of lost pictures in an H.264 stream, which FFmpeg's decoder conceals without a word.

A picture that other pictures are predicted from has a number (``frame_num``, ITU-T H.264, 7.4.3). The number grows by
one from reference picture to reference picture, so a jump shows that pictures were lost on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

__all__ = ["GapFinder"]

_SLICE, _IDR, _SPS = 1, 5, 7
"""Types of NAL units of an H.264 stream: part of a picture, part of a picture at which decoding can begin, and a
sequence's settings."""
_WITH_CHROMA = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
"""H.264 profiles (``profile_idc``) whose sequence settings state the chroma format."""
_HEAD = 32
"""Number of bytes at the beginning of an H.264 slice that are enough to read the picture's number."""


class GapFinder:
    """Finder of lost pictures in the packets of an H.264 stream.

    Args:
        extradata: the stream's settings, as containers keep them; None if they come with the pictures.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self.is_idr = False
        """Whether the newest picture of an H.264 stream is an IDR picture, after which no picture depends on an earlier
        one."""
        self._prefix = 0
        """Number of bytes of the length field in front of each NAL unit; 0 if start codes separate the NAL units."""
        self._settings: tuple[int, bool] | None = None
        """Number of bits of a picture's number in an H.264 slice header, and whether the header has two bits for a
        colour plane; None if unknown."""
        self._last: int | None = None
        """Number (``frame_num``) of an H.264 stream's newest reference picture; None if unknown."""
        if extradata and extradata[0] == 1 and len(extradata) > 8:
            self._prefix = (extradata[4] & 3) + 1
            size = int.from_bytes(extradata[6:8], "big")
            with suppress(ValueError):
                self._read_settings(extradata[8 : 8 + size])
        elif extradata:
            self.lost(extradata)

    def forget(self) -> None:
        """Forget the number of an H.264 stream's last picture, because packets between the last packet and the next one
        were left out."""
        self._last = None

    def lost(self, packet: bytes) -> bool:
        """Return whether pictures were lost before an H.264 packet, on which the packet's picture may depend."""
        try:
            for unit in _units(packet, self._prefix):
                kind = unit[0] & 31
                if kind == _SPS:
                    self._read_settings(unit)
                elif kind in (_SLICE, _IDR):
                    self.is_idr = kind == _IDR
                    return self._follow(unit, kind)
        except (IndexError, ValueError):
            # A damaged packet, which the decoder refuses.
            self._last = None
        return False

    def _follow(self, unit: bytes, kind: int) -> bool:
        """Return whether the number of a slice's picture shows that pictures before it were lost."""
        if self._settings is None:
            return False
        bits, has_plane = self._settings
        reader = _Bits(unit[:_HEAD])
        for _ in range(3):
            reader.number()
        if has_plane:
            reader.take(2)
        number, last = reader.take(bits), self._last
        if unit[0] & 0x60:
            self._last = number
        return kind == _SLICE and last is not None and (number - last) % (1 << bits) > 1

    def _read_settings(self, unit: bytes) -> None:
        """Read from a stream's sequence settings (SPS) how picture numbers are stored; forget this if gaps are
        allowed."""
        reader = _Bits(unit)
        profile = reader.take(8)
        reader.take(16)
        reader.number()
        has_plane = False
        if profile in _WITH_CHROMA:
            chroma = reader.number()
            has_plane = chroma == 3 and bool(reader.take(1))
            reader.number(), reader.number(), reader.take(1)
            if reader.take(1):
                _skip_scaling(reader, 8 if chroma != 3 else 12)
        bits = reader.number() + 4
        order = reader.number()
        if order == 0:
            reader.number()
        elif order == 1:
            reader.take(1), reader.number(), reader.number()
            for _ in range(min(reader.number(), 255)):
                reader.number()
        reader.number()
        gaps_allowed = bool(reader.take(1))
        settings = None if gaps_allowed or bits > 16 else (bits, has_plane)
        if settings != self._settings:
            self._settings, self._last = settings, None


def _units(packet: bytes, prefix: int) -> Iterator[bytes]:
    """Yield the beginnings of the NAL units of an H.264 packet, each of at least one byte."""
    place = 0
    while place < len(packet):
        if prefix:
            begin, size = place + prefix, int.from_bytes(packet[place : place + prefix], "big")
            end = place = begin + size
        else:
            code = packet.find(b"\0\0\1", place)
            if code < 0:
                return
            begin = place = code + 3
            end = begin + 512
        if begin < min(end, len(packet)):
            yield packet[begin : min(end, begin + 512)]


def _skip_scaling(reader: _Bits, lists: int) -> None:
    for index in range(lists):
        if not reader.take(1):
            continue
        last = following = 8
        for _ in range(16 if index < 6 else 64):
            if following:
                code = reader.number()
                following = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
            last = following or last


class _Bits:
    """Reader of the bits of a NAL unit, without the unit's first byte and its emulation prevention bytes."""

    def __init__(self, unit: bytes) -> None:
        body = unit[1:].replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(body, "big"), 8 * len(body)

    def take(self, count: int) -> int:
        """Return the next ``count`` bits of a NAL unit as a number.

        Raises:
            ValueError: there are not so many bits.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError("the NAL unit is cut off")
        return (self._value >> self._left) & ((1 << count) - 1)

    def number(self) -> int:
        """Return the next number in Exp-Golomb code from the bits of a NAL unit.

        Raises:
            ValueError: there is no number.
        """
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("not a number")
        return (1 << zeros) - 1 + self.take(zeros)

"""Allocator inside one block of memory: chooses the offset of each segment in a device arena's allocation.

A segment goes into the smallest hole that is large enough (best fit), and neighbouring holes are joined when a segment
is freed (Knuth, "The Art of Computer Programming", 2.5). Free memory may end up in pieces that are too small for the
next segment; :meth:`Slab.compact` then returns the moves that join the pieces.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

__all__ = ["Move", "Slab"]


@dataclass(frozen=True, slots=True)
class Move:
    """Copy of a segment's ``length`` bytes from offset ``source`` to the lower offset ``target``.

    The two ranges may overlap, so the bytes must be copied in rising order.
    """

    name: str
    source: int
    target: int
    length: int


class Slab:
    """Allocator of the bytes 0 to ``size``, which segments take in units of ``alignment`` bytes.

    Args:
        size: bytes that segments may take; a remainder smaller than a unit is never used.
        alignment: size of a unit in bytes, a power of two. Every segment begins at a multiple of it.

    Raises:
        ValueError: the size is negative, or the alignment is not a power of two.

    >>> slab = Slab(1024)
    >>> slab.allocate("a", 300), slab.allocate("b", 100)
    (0, 512)
    >>> slab.free("a")
    >>> slab.allocate("c", 600) is None, slab.room
    (True, 768)
    >>> slab.compact()
    [Move(name='b', source=512, target=0, length=256)]
    >>> slab.allocate("c", 600)
    256
    """

    def __init__(self, size: int, alignment: int = 256) -> None:
        if size < 0 or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"a slab of {size} bytes in units of {alignment} is not possible")
        self._alignment = alignment
        self.size = size // alignment * alignment
        self._used: dict[str, tuple[int, int]] = {}
        self._holes: list[tuple[int, int]] = [(0, self.size)] if self.size else []  # (offset, length), by offset

    @property
    def room(self) -> int:
        """Total size in bytes of all free pieces of the allocator's memory."""
        return sum(length for _, length in self._holes)

    @property
    def widest(self) -> int:
        """Size in bytes of the largest free piece of the allocator's memory."""
        return max((length for _, length in self._holes), default=0)

    def needs(self, length: int) -> int:
        """Return the bytes that a segment of ``length`` bytes takes, rounded up to whole units."""
        return -(-length // self._alignment) * self._alignment

    def offset(self, name: str) -> int:
        """Return the offset of a segment, in bytes.

        Raises:
            KeyError: no memory is allocated for the segment.
        """
        return self._used[name][0]

    def allocate(self, name: str, length: int) -> int | None:
        """Allocate memory for a segment and return its offset in bytes; None if no free piece is large enough.

        A segment of 0 bytes gets offset 0 and takes no memory.

        Raises:
            ValueError: memory for the segment is allocated already, or the length is negative.
        """
        if name in self._used or length < 0:
            raise ValueError(f"{name!r} has a place" if name in self._used else f"{length} bytes are not possible")
        needed = self.needs(length)
        if not needed:
            self._used[name] = (0, 0)
            return 0
        best = min(
            (hole for hole in self._holes if hole[1] >= needed), key=lambda hole: (hole[1], hole[0]), default=None
        )
        if best is None:
            return None
        index = bisect_left(self._holes, best)
        offset, free = best
        self._holes[index : index + 1] = [(offset + needed, free - needed)] if free > needed else []
        self._used[name] = (offset, needed)
        return offset

    def free(self, name: str) -> None:
        """Free the memory of a segment, so that other segments can take the memory.

        Raises:
            KeyError: no memory is allocated for the segment.
        """
        offset, length = self._used.pop(name)
        if not length:
            return
        index = bisect_left(self._holes, (offset, 0))
        first, last = index, index
        if index and sum(self._holes[index - 1]) == offset:
            first, offset, length = index - 1, self._holes[index - 1][0], length + self._holes[index - 1][1]
        if index < len(self._holes) and offset + length == self._holes[index][0]:
            last, length = index + 1, length + self._holes[index][1]
        self._holes[first:last] = [(offset, length)]

    def compact(self) -> list[Move]:
        """Assign all segments to the front, so that free memory is one piece; return the moves to make, in order."""
        moves, end = [], 0
        for name, (offset, length) in sorted(self._used.items(), key=lambda item: item[1]):
            if not length:
                continue
            if offset != end:
                moves.append(Move(name, offset, end, length))
                self._used[name] = (end, length)
            end += length
        self._holes = [(end, self.size - end)] if end < self.size else []
        return moves

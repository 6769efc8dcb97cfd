"""Counters of an arena's loads and evictions."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ArenaStats"]


@dataclass
class ArenaStats:
    """Counters of loads and evictions since an arena was made."""

    loads: int = 0
    """Number of segment loads that were requested."""
    loaded: int = 0
    """Total bytes of all segment loads that were requested."""
    evicted: int = 0
    """Total bytes of all segments that were evicted."""
    peak: int = 0
    """Maximum bytes of segments that were resident or loading at once."""
    blocked_s: float = 0.0
    """Seconds that models waited for segments to be loaded."""

    def __add__(self, other: ArenaStats) -> ArenaStats:
        """Return the counters of two arenas, of which one was used after the other."""
        return ArenaStats(
            self.loads + other.loads,
            self.loaded + other.loaded,
            self.evicted + other.evicted,
            max(self.peak, other.peak),
            self.blocked_s + other.blocked_s,
        )

    def since(self, earlier: ArenaStats) -> ArenaStats:
        """Return what was counted after ``earlier``; the peak is that of the whole time."""
        return ArenaStats(
            self.loads - earlier.loads,
            self.loaded - earlier.loaded,
            self.evicted - earlier.evicted,
            self.peak,
            self.blocked_s - earlier.blocked_s,
        )

"""Settings of how segments are loaded into memory and evicted from it."""

from __future__ import annotations

from dataclasses import dataclass

from ..trace import Watch, unwatched

__all__ = ["WARM", "Loading"]


@dataclass(frozen=True)
class Loading:
    """Settings of how segments are loaded and evicted."""

    cold: bool = False
    """Whether an evicted segment also leaves the page cache, as on a machine that is short of memory.

    The next load of the segment then reads the disk.
    """
    bandwidth: float | None = None
    """Maximum bytes per second of a load, to imitate a slower device; unlimited when None."""
    watch: Watch = unwatched
    """Function called after every load, on the thread that loaded the segment, with the segment's name and the begin
    and end of the load in seconds of the monotonic clock."""

    def __str__(self) -> str:
        """Return the key under which load times that were measured with these settings are kept.

        >>> str(Loading()), str(Loading(cold=True, bandwidth=2e8))
        ('warm', 'cold-200000000')
        """
        kind = "cold" if self.cold else "warm"
        return kind if self.bandwidth is None else f"{kind}-{self.bandwidth:.0f}"


WARM = Loading()
"""Settings of loads from the page cache, at full speed."""

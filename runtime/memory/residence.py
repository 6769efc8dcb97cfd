"""Record that an arena keeps of one segment: its state, its users and the ticket (future) of its load."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["Residence", "ResidenceState"]


class ResidenceState(Enum):
    """State of a segment, as known to the thread that calls the arena."""

    MISSING = auto()
    """The segment is not in memory and was not requested."""
    LOADING = auto()
    """The segment was requested. Its load has not ended yet, or the end was not recorded yet."""
    RESIDENT = auto()
    """The segment is loaded and in memory."""
    FAILED = auto()
    """The segment is not in memory, because its load failed or its memory was lost. It may be requested again."""


@dataclass(slots=True)
class Residence:
    """State of one segment, number of its users, and ticket (future that says when the segment is loaded).

    Only the thread that calls the arena changes the record. The loader thread only marks the ticket as done or failed.

    >>> segment = Residence()
    >>> ticket = segment.load()
    >>> segment.settle(), segment.state.name, segment.occupies
    (None, 'LOADING', True)
    >>> ticket.set_result(None)
    >>> segment.settle(), segment.state.name, segment.idle
    (None, 'RESIDENT', True)
    """

    state: ResidenceState = ResidenceState.MISSING
    users: int = 0
    """Number of times that the segment was acquired and not yet released."""
    ticket: Future[None] | None = None
    """Future that the loader thread marks as done when the segment is loaded, or as failed; None if not loading."""

    @property
    def occupies(self) -> bool:
        """Whether the segment counts towards the budget: it is resident or loading."""
        return self.state in (ResidenceState.LOADING, ResidenceState.RESIDENT)

    @property
    def idle(self) -> bool:
        """Whether the segment may be evicted: it is resident or loading, and has no users."""
        return self.occupies and not self.users

    @property
    def awaited(self) -> bool:
        """Whether a model must wait for the segment, which is missing or loading.

        A model does not wait for a failed segment: acquiring the segment loads it again, and raises the error if that
        fails too.
        """
        return self.state in (ResidenceState.MISSING, ResidenceState.LOADING)

    def load(self) -> Future[None]:
        """Note that the segment was requested, and return the ticket (future) that the loader must mark as done."""
        self.state, self.ticket = ResidenceState.LOADING, Future()
        return self.ticket

    def drop(self) -> None:
        """Note that the segment was evicted. If the segment was still loading, forget the load's ticket (future)."""
        self.state, self.ticket = ResidenceState.MISSING, None

    def settle(self, *, kept: bool = True) -> None:
        """Update the state, if the segment's load has ended or its memory was lost.

        Args:
            kept: whether the segment, if it was loaded, is still in memory.
        """
        if self.ticket is not None and self.ticket.done():
            failed = self.ticket.exception() is not None
            self.state, self.ticket = ResidenceState.FAILED if failed else ResidenceState.RESIDENT, None
        if self.state is ResidenceState.RESIDENT and not kept:
            self.state = ResidenceState.FAILED

    def wait(self) -> None:
        """Block until the segment is in memory; return at once if the segment is not loading.

        Raises:
            Exception: the error with which the load of the segment failed.
        """
        if self.ticket is not None:
            self.ticket.result()

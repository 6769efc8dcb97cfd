"""The account that an arena keeps of one segment: its state, its users and the ticket of its load."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["Residence", "ResidenceState"]


class ResidenceState(Enum):
    """State of a segment, as the thread that uses the arena knows it."""

    MISSING = auto()
    """Not in memory and not asked for."""
    LOADING = auto()
    """Asked for; its ticket is not settled, or nobody has looked at the ticket yet."""
    RESIDENT = auto()
    """Loaded and in memory."""
    FAILED = auto()
    """Not in memory, because its load failed or its memory was lost. It may be asked for again."""


@dataclass(slots=True)
class Residence:
    """State, users and ticket of one segment. Only the thread that uses the arena changes it.

    The loader's thread settles the ticket and touches nothing else.

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
    """Settled by the loader's thread when the segment is in memory or has failed; None unless the state is LOADING."""

    @property
    def occupies(self) -> bool:
        """Whether the segment takes its bytes of the budget: resident or loading."""
        return self.state in (ResidenceState.LOADING, ResidenceState.RESIDENT)

    @property
    def idle(self) -> bool:
        """Whether the segment may be evicted: resident or loading, and without users."""
        return self.occupies and not self.users

    @property
    def awaited(self) -> bool:
        """Whether a model must wait for the segment. Nobody waits for a failed one: acquiring it says why it fails."""
        return self.state in (ResidenceState.MISSING, ResidenceState.LOADING)

    def load(self) -> Future[None]:
        """Note that the segment was asked for, and return the ticket that the loader must settle."""
        self.state, self.ticket = ResidenceState.LOADING, Future()
        return self.ticket

    def drop(self) -> None:
        """Note that the segment was evicted. A load under way is forgotten, and its ticket with it."""
        self.state, self.ticket = ResidenceState.MISSING, None

    def settle(self, *, kept: bool = True) -> None:
        """Take note of what the loader did.

        Args:
            kept: whether the segment, if it was loaded, is still in memory.
        """
        if self.ticket is not None and self.ticket.done():
            failed = self.ticket.exception() is not None
            self.state, self.ticket = ResidenceState.FAILED if failed else ResidenceState.RESIDENT, None
        if self.state is ResidenceState.RESIDENT and not kept:
            self.state = ResidenceState.FAILED

    def wait(self) -> None:
        """Block until the segment is in memory; return at once if nothing is loading.

        Raises:
            Exception: the error that its load ended with.
        """
        if self.ticket is not None:
            self.ticket.result()

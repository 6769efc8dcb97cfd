"""Input of a run's plans: times and bytes, a budget, a policy, and the memory that weights are loaded into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..planning.planner import Policy
from ..planning.profile import ModelProfile, Profile, QueryProfile

__all__ = ["Memory", "Swapping", "deepest_turns", "in_turn"]


class Memory(Protocol):
    """Memory that segments are loaded into and evicted from; every backend is one."""

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = ...) -> None:
        """Evict and then load segments while the caller goes on; see :meth:`..backends.Backend.prefetch`."""
        ...

    def loaded(self, segments: Sequence[str]) -> bool:
        """Return whether all of the segments are in memory."""
        ...

    def evict(self) -> None:
        """Evict all segments that no running model holds."""
        ...


@dataclass(frozen=True)
class Swapping:
    """A workload whose weights are not all in memory at once."""

    profile: Profile
    budget: int
    """Bytes of weights that may be in memory at once."""
    memory: Memory
    policy: Policy

    def depths(self, queries: Mapping[str, str]) -> dict[str, int]:
        """Return, by feed, the most frames that one turn of a query can take, whatever is planned.

        Args:
            queries: feed of each query.
        """
        return deepest_turns(queries, {query: self.profile.batches(query)[-1] for query in queries})


def deepest_turns(queries: Mapping[str, str], turns: Mapping[str, int]) -> dict[str, int]:
    """Return, by feed, the most frames that one turn of a query of the feed takes.

    Args:
        queries: feed of each query.
        turns: by query, the most frames of a turn.
    """
    found: dict[str, int] = {}
    for query, feed in queries.items():
        found[feed] = max(found.get(feed, 1), turns[query])
    return found


def in_turn(queries: Mapping[str, str]) -> Swapping:
    """Return the input for a run that plans nothing: all weights are in memory, and each turn takes one frame.

    Args:
        queries: feed of each query.
    """
    profile = Profile(
        segments={},
        models={"any": ModelProfile(segments=(), run_ms={1: 0.0})},
        queries={query: QueryProfile(model="any", fps=1.0, feed=feed) for query, feed in queries.items()},
    )
    return Swapping(profile, 0, _AllInMemory(), Policy(listed=True))


class _AllInMemory:
    """A memory of no segments, in which nothing is ever loaded or evicted."""

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = ...) -> None:
        pass

    def loaded(self, segments: Sequence[str]) -> bool:
        return True

    def evict(self) -> None:
        pass

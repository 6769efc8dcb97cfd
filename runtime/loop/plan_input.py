"""Input of a run's plans: a profile, a budget, a policy, and the memory that weights are loaded into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..planning.planner import Plan, Policy
from ..planning.profile import ModelProfile, Profile, QueryProfile

__all__ = ["Memory", "Swapping", "deepest_turns", "in_turn"]


class Memory(Protocol):
    """Interface to memory that segments are loaded into and evicted from; every backend implements the interface."""

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = ...) -> None:
        """Evict and then load segments while the caller goes on; see :meth:`..backends.Backend.prefetch`."""
        ...

    def loaded(self, segments: Sequence[str]) -> bool:
        """Return whether a model can use the segments without waiting for a load."""
        ...

    def evict(self) -> None:
        """Evict from memory all segments that no running model holds."""
        ...


@dataclass(frozen=True)
class Swapping:
    """Input of the plans of a run whose weights are not all in memory at once."""

    profile: Profile
    budget: int
    """Maximum bytes of weights that may be in memory at once."""
    memory: Memory
    policy: Policy
    plan: Plan | None = None
    """Plan to begin with; if None, one is made before the first turn, and cameras wait."""

    def depths(self, queries: Mapping[str, str]) -> dict[str, int]:
        """Return feed -> maximum number of frames that one turn of a query of the feed can take under any plan.

        Args:
            queries: query -> name of its feed.
        """
        return deepest_turns(queries, {query: self.profile.batches(query)[-1] for query in queries})


def deepest_turns(queries: Mapping[str, str], turns: Mapping[str, int]) -> dict[str, int]:
    """Return feed -> maximum number of frames that one turn of a query of the feed takes.

    Args:
        queries: query -> name of its feed.
        turns: query -> maximum number of frames in its turn.
    """
    found: dict[str, int] = {}
    for query, feed in queries.items():
        found[feed] = max(found.get(feed, 1), turns[query])
    return found


def in_turn(queries: Mapping[str, str]) -> Swapping:
    """Return the input for a run without planning: all weights are in memory, and each turn takes one frame.

    Args:
        queries: query -> name of its feed.
    """
    profile = Profile(
        segments={},
        models={"any": ModelProfile(segments=(), run_ms={1: 0.0})},
        queries={query: QueryProfile(model="any", fps=1.0, feed=feed) for query, feed in queries.items()},
    )
    return Swapping(profile, 0, _AllInMemory(), Policy(listed=True))


class _AllInMemory:
    """Memory without segments, in which nothing is ever loaded or evicted."""

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = ...) -> None:
        pass

    def loaded(self, segments: Sequence[str]) -> bool:
        return True

    def evict(self) -> None:
        pass

"""What a run is planned with: times and bytes, a budget, and where weights come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..planning.planner import Policy
from ..planning.profile import ModelProfile, Profile, QueryProfile

__all__ = ["Memory", "Swapping", "in_turn"]


class Memory(Protocol):
    """Where weights come and go; a backend is one."""

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = ...) -> None: ...

    def loaded(self, segments: Sequence[str]) -> bool: ...

    def evict(self) -> None: ...


@dataclass(frozen=True)
class Swapping:
    """A workload whose weights are not all in memory at once."""

    profile: Profile
    budget: int
    """Bytes."""
    memory: Memory
    policy: Policy


def in_turn(queries: Mapping[str, str]) -> Swapping:
    """All weights are in memory and nothing is known of runs: each query has a frame in its turn.

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
    """No segments, nothing to do."""

    def prefetch(self, load: Sequence[str], evict: Sequence[str] = (), done: Callable[[], None] = ...) -> None:
        pass

    def loaded(self, segments: Sequence[str]) -> bool:
        return True

    def evict(self) -> None:
        pass

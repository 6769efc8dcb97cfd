"""Residency: which segments each turn of a cyclic order loads and evicts, under a budget of bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from .profile import Profile

__all__ = ["Rule", "Step", "Transfer", "settled", "steps"]

_MOST_CYCLES = 16
"""Cycles that are replayed while none repeats an earlier one; the last half of them then stands for all later ones."""


@dataclass(frozen=True)
class Rule:
    """Eviction and prefetch."""

    evict: Literal["farthest", "recent", "least-recent"] = "farthest"
    """Evicted first: the unit whose next use is farthest, the most recently used one, or the least recently used one.

    The next use is known because the order is cyclic (Belady's rule).
    """
    whole: bool = False
    """Load and evict whole models, except segments that another model in memory shares; otherwise single segments."""
    ahead: Literal["part", "all", "none"] = "part"
    """Prefetch while the turn before runs: as many segments as fit, all that are missing or none, or always none."""
    fill: bool = True
    """Run queries whose weights are in memory while the query whose turn it is waits for its weights."""


@dataclass(frozen=True)
class Transfer:
    """Segments to evict, and segments to load after that."""

    evict: tuple[str, ...] = ()
    load: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """A query's turn, and the transfers that it needs."""

    query: str
    ahead: Transfer
    """Transfer while the turn before runs, which keeps the segments of that turn."""
    then: Transfer
    """Transfer after the turn before, whose segments may be evicted now."""


def steps(profile: Profile, budget: int, order: Sequence[str], rule: Rule) -> Iterator[Step]:
    """Yield the turns of a cyclic order, without end. No segment is in memory at first.

    Args:
        profile: sizes of segments, and the segments that each query needs.
        budget: bytes that may be in memory at once; no less than the largest model.
        order: queries in the order of their turns.
        rule: eviction and prefetch.
    """
    memory = _Memory(profile, budget, order, rule)
    for position in count():
        yield memory.turn(position)


def settled(profile: Profile, budget: int, order: Sequence[str], rule: Rule) -> list[list[Step]]:
    """Return the cycles that repeat once the first ones are over: mostly one, sometimes as many as queries.

    The arguments are those of :func:`steps`.
    """
    memory = _Memory(profile, budget, order, rule)
    cycles: list[list[Step]] = []
    known: dict[object, int] = {}
    while memory.state not in known and len(cycles) < _MOST_CYCLES:
        known[memory.state] = len(cycles)
        start = len(cycles) * len(order)
        cycles.append([memory.turn(position) for position in range(start, start + len(order))])
    return cycles[known.get(memory.state, len(cycles) // 2) :]


class _Memory:
    """Segments in memory, from turn to turn. What is evicted at once is a *unit*: a segment, or a whole model."""

    def __init__(self, profile: Profile, budget: int, order: Sequence[str], rule: Rule) -> None:
        self._profile, self._budget, self._rule, self._order = profile, budget, rule, order
        self._units: dict[str, tuple[str, ...]] = {}
        """Unit -> its segments."""
        self._places: dict[str, list[int]] = {}
        """Unit -> places in the order at which it is used."""
        for place, query in enumerate(order):
            for unit, segments in self._units_of(query).items():
                self._units[unit] = segments
                self._places.setdefault(unit, []).append(place)
        self._resident: dict[str, None] = {}
        """Units in memory, the least recently used first."""
        self._segments: dict[str, None] = {}
        """Segments in memory, in the order of their loads."""
        self._running: tuple[str, ...] | None = None
        """Segments of the turn before; None before the first turn."""
        self._free = budget

    @property
    def state(self) -> object:
        """Everything that later turns depend on; two equal states at the beginning of a cycle lead to equal cycles."""
        return self._running, tuple(self._resident)

    def turn(self, position: int) -> Step:
        """Take the turn at ``position``, counted over all cycles, and return it with its transfers."""
        query = self._order[position % len(self._order)]
        wanted = self._profile.segments_of(query)
        missing = [segment for segment in wanted if segment not in self._segments]
        early = self._early(missing, wanted)
        ahead = self._load(early, {*(self._running or ()), *wanted}, position)
        then = self._load([segment for segment in missing if segment not in early], set(wanted), position)
        for unit in self._units_of(query):
            # Deleted and set again, so that it is the last, which is the most recently used.
            self._resident.pop(unit, None)
            self._resident[unit] = None
        self._running = wanted
        return Step(query, ahead, then)

    def _units_of(self, query: str) -> Mapping[str, tuple[str, ...]]:
        segments = self._profile.segments_of(query)
        if self._rule.whole:
            return {self._profile.queries[query].model: segments}
        return {segment: (segment,) for segment in segments}

    def _bytes(self, segments: Collection[str]) -> int:
        return sum(self._profile.segments[segment].bytes for segment in segments)

    def _early(self, missing: Sequence[str], wanted: Collection[str]) -> list[str]:
        """Choose the missing segments to load while the turn before runs; the slowest loads first if not all fit."""
        if self._running is None or self._rule.ahead == "none":
            return []
        kept = {*self._running, *(segment for segment in wanted if segment in self._segments)}
        room = self._budget - self._bytes(kept)
        if self._bytes(missing) <= room:
            return list(missing)
        found = []
        if self._rule.ahead == "part":
            for segment in sorted(missing, key=self._profile.load_ms, reverse=True):
                if self._profile.segments[segment].bytes <= room:
                    found.append(segment)
                    room -= self._profile.segments[segment].bytes
        return found

    def _load(self, segments: Sequence[str], held: Collection[str], position: int) -> Transfer:
        """Evict what the rule says, except ``held``, until ``segments`` fit, and load them."""
        evicted = self._make_room(self._bytes(segments), held, position)
        self._take_in(segments)
        return Transfer(tuple(evicted), tuple(segments))

    def _take_in(self, segments: Sequence[str]) -> None:
        self._segments.update(dict.fromkeys(segments))
        self._free -= self._bytes(segments)

    def _make_room(self, needed: int, held: Collection[str], position: int) -> list[str]:
        """Evict units in the order of the rule until ``needed`` bytes are free; return the segments that are gone."""
        if needed <= self._free:
            return []
        units, segments = list(self._resident), list(self._segments)
        gone = []
        for unit in self._ranked(position):
            if needed <= self._free:
                break
            if all(segment in held for segment in self._units[unit]):
                continue
            del self._resident[unit]
            self._drop(unit, held)
            gone.append(unit)
        for unit in reversed(gone):
            # The large unit evicted last may free enough alone: then small ones before it stay.
            back = [segment for segment in self._units[unit] if segment not in self._segments]
            if self._free - self._bytes(back) >= needed:
                self._resident[unit] = None
                self._take_in(back)
        # In their former order: units that stayed are no more recently used than before.
        self._resident = {unit: None for unit in units if unit in self._resident}
        return [segment for segment in segments if segment not in self._segments]

    def _drop(self, unit: str, held: Collection[str]) -> None:
        """Evict the segments of a unit, except held ones and those of another unit in memory."""
        others = {segment for each in self._resident for segment in self._units[each]} if self._rule.whole else ()
        for segment in self._units[unit]:
            if segment in self._segments and segment not in held and segment not in others:
                del self._segments[segment]
                self._free += self._profile.segments[segment].bytes

    def _ranked(self, position: int) -> list[str]:
        """Return the units in memory, the first one to evict first."""
        units = list(self._resident)
        if self._rule.evict == "least-recent":
            return units
        if self._rule.evict == "recent":
            return units[::-1]
        return sorted(units, key=lambda unit: -self._distance(unit, position))

    def _distance(self, unit: str, position: int) -> int:
        """Return the number of turns from ``position`` to the next use of a unit."""
        places, count = self._places[unit], len(self._order)
        now = position % count
        index = bisect_right(places, now)
        return places[index] - now if index < len(places) else places[0] + count - now

"""What is loaded and dropped on the way round a cycle of queries, under a budget of bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from .profile import Profile

__all__ = ["Rule", "Step", "Transfer", "settled", "steps"]

_MOST_CYCLES = 16
"""After which the last half of them stands for all that follow: those of many queries may take long to repeat."""


@dataclass(frozen=True)
class Rule:
    """How room is made, and what is loaded ahead."""

    evict: Literal["farthest", "recent", "least-recent"] = "farthest"
    """What goes first: what is next used last, what was used last, or what has not been used for longest."""
    whole: bool = False
    """Models come and go as a whole, but for what another one in memory shares with them; else segments do."""
    ahead: Literal["part", "all", "none"] = "part"
    """What is loaded while the query before runs: as much as there is room for, all or nothing, nothing."""
    fill: bool = True
    """Whether queries whose weights are in memory run while others wait for theirs."""


@dataclass(frozen=True)
class Transfer:
    """Segments that go, and then segments that come, in this order."""

    evict: tuple[str, ...] = ()
    load: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """A query's turn."""

    query: str
    ahead: Transfer
    """While the step before runs."""
    then: Transfer
    """After it: its segments may go now."""


def steps(profile: Profile, budget: int, order: Sequence[str], rule: Rule) -> Iterator[Step]:
    """Turns of a cyclic order, without end. Nothing is in memory at first.

    Args:
        profile: sizes, and who uses what.
        budget: bytes; at least those of the hungriest model.
        order: queries.
        rule: how room is made.
    """
    memory = _Memory(profile, budget, order, rule)
    for position in count():
        yield memory.turn(position)


def settled(profile: Profile, budget: int, order: Sequence[str], rule: Rule) -> list[list[Step]]:
    """The cycles that repeat for ever, once the first ones are over; mostly one, sometimes as many as queries."""
    memory = _Memory(profile, budget, order, rule)
    cycles: list[list[Step]] = []
    known: dict[object, int] = {}
    while memory.state not in known and len(cycles) < _MOST_CYCLES:
        known[memory.state] = len(cycles)
        start = len(cycles) * len(order)
        cycles.append([memory.turn(position) for position in range(start, start + len(order))])
    return cycles[known.get(memory.state, len(cycles) // 2) :]


class _Memory:
    """What is resident: units, which are segments or whole models, the least recently used first."""

    def __init__(self, profile: Profile, budget: int, order: Sequence[str], rule: Rule) -> None:
        self._profile, self._budget, self._rule, self._order = profile, budget, rule, order
        self._units: dict[str, tuple[str, ...]] = {}
        self._places: dict[str, list[int]] = {}
        for place, query in enumerate(order):
            for unit, segments in self._units_of(query).items():
                self._units[unit] = segments
                self._places.setdefault(unit, []).append(place)
        self._resident: dict[str, None] = {}
        self._segments: dict[str, None] = {}
        self._running: tuple[str, ...] | None = None
        self._free = budget

    @property
    def state(self) -> object:
        """All that later turns depend on, at the beginning of a cycle."""
        return self._running, tuple(self._resident)

    def turn(self, position: int) -> Step:
        query = self._order[position % len(self._order)]
        wanted = self._profile.segments_of(query)
        missing = [segment for segment in wanted if segment not in self._segments]
        early = self._early(missing, wanted)
        ahead = self._load(early, {*(self._running or ()), *wanted}, position)
        then = self._load([segment for segment in missing if segment not in early], set(wanted), position)
        for unit in self._units_of(query):
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
        """What of ``missing`` can be loaded beside what runs; the slowest loads first where not all of it can."""
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
        """Make room beside ``held``, and take ``segments`` in."""
        evicted = self._make_room(self._bytes(segments), held, position)
        self._take_in(segments)
        return Transfer(tuple(evicted), tuple(segments))

    def _take_in(self, segments: Sequence[str]) -> None:
        self._segments.update(dict.fromkeys(segments))
        self._free -= self._bytes(segments)

    def _make_room(self, needed: int, held: Collection[str], position: int) -> list[str]:
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
            # A large unit after small ones may be enough alone.
            back = [segment for segment in self._units[unit] if segment not in self._segments]
            if self._free - self._bytes(back) >= needed:
                self._resident[unit] = None
                self._take_in(back)
        self._resident = {unit: None for unit in units if unit in self._resident}
        return [segment for segment in segments if segment not in self._segments]

    def _drop(self, unit: str, held: Collection[str]) -> None:
        """Segments that leave memory with a unit: those that are not held, and in no other unit that stays."""
        others = {segment for each in self._resident for segment in self._units[each]} if self._rule.whole else ()
        for segment in self._units[unit]:
            if segment in self._segments and segment not in held and segment not in others:
                del self._segments[segment]
                self._free += self._profile.segments[segment].bytes

    def _ranked(self, position: int) -> list[str]:
        units = list(self._resident)
        if self._rule.evict == "least-recent":
            return units
        if self._rule.evict == "recent":
            return units[::-1]
        return sorted(units, key=lambda unit: -self._distance(unit, position))

    def _distance(self, unit: str, position: int) -> int:
        """Turns until a unit is used after ``position``."""
        places, count = self._places[unit], len(self._order)
        now = position % count
        index = bisect_right(places, now)
        return places[index] - now if index < len(places) else places[0] + count - now

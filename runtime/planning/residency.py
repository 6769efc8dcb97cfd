"""Residency: which segments each turn of a cyclic order loads and evicts, under a budget of bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from .profile import Profile

__all__ = ["Rule", "Step", "Transfer", "settled", "steps"]

_MOST_CYCLES = 16
"""Maximum number of cycles to replay in search of one that repeats an earlier one.

If no cycle repeats, the last half of the replayed cycles stands for all later cycles.
"""


@dataclass(frozen=True)
class Rule:
    """Rule that chooses the segments to evict and to prefetch."""

    evict: Literal["farthest", "recent", "least-recent"] = "farthest"
    """Unit (segment or whole model) to evict first.

    ``farthest``: the unit whose next use is farthest away, which is known because the order of queries is cyclic
    (Belady's rule). ``recent``: the most recently used unit. ``least-recent``: the least recently used unit.
    """
    whole: bool = False
    """Whether to load and evict whole models instead of single segments.

    Segments of an evicted model stay if another model in memory shares them.
    """
    ahead: Literal["part", "all", "none"] = "part"
    """Segments to prefetch while the previous turn runs.

    ``part``: as many of the missing segments as fit. ``all``: all missing segments, or none if not all fit. ``none``:
    no segments.
    """
    fill: bool = True
    """Whether to run other queries, whose weights are in memory, while the query whose turn it is waits for weights."""
    far: bool = False
    """Whether to prefetch for the turns after the next one too, if everything fits that the turns before them need.

    Nothing is prefetched if ``ahead`` is ``none``.
    """


@dataclass(frozen=True)
class Transfer:
    """Segments to evict, and segments to load after the eviction."""

    evict: tuple[str, ...] = ()
    load: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """Turn of a query, and the transfers (evictions and loads of segments) that the turn needs."""

    query: str
    ahead: Transfer
    """Transfer to make while the previous turn runs; it evicts no segment of the previous turn."""
    then: Transfer
    """Transfer to make after the previous turn has ended; it may evict segments of the previous turn."""


def steps(
    profile: Profile, budget: int, order: Sequence[str], rule: Rule, resident: Iterable[str] = ()
) -> Iterator[Step]:
    """Yield the turns of a cyclic order of queries, with their transfers, endlessly.

    Args:
        profile: sizes of segments, and the segments that each query needs.
        budget: maximum bytes that may be in memory at once; no less than the largest model.
        order: queries in the order of their turns.
        rule: rule of eviction and prefetch; not one about whole models if segments are in memory already.
        resident: segments that are in memory at first, and that a query of the order needs.
    """
    memory = _Memory(profile, budget, order, rule)
    memory.begin(resident)
    for position in count():
        yield memory.turn(position)


def settled(profile: Profile, budget: int, order: Sequence[str], rule: Rule) -> list[list[Step]]:
    """Return the cycles of turns that repeat after a start phase: usually one, or as many as there are queries.

    The arguments are those of :func:`steps`, of a memory that is empty at first.
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
    """Simulated memory: the segments in memory, from turn to turn.

    A *unit* is what is evicted at once: a segment or a whole model, depending on the rule.
    """

    def __init__(self, profile: Profile, budget: int, order: Sequence[str], rule: Rule) -> None:
        self._profile, self._budget, self._rule, self._order = profile, budget, rule, order
        self._units: dict[str, tuple[str, ...]] = {}
        """Unit (segment or whole model) -> segments of the unit."""
        self._places: dict[str, list[int]] = {}
        """Unit (segment or whole model) -> positions, in the order of queries, of the queries that use the unit."""
        for place, query in enumerate(order):
            for unit, segments in self._units_of(query).items():
                self._units[unit] = segments
                self._places.setdefault(unit, []).append(place)
        self._resident: dict[str, None] = {}
        """Units (segments or whole models) in memory, the least recently used first."""
        self._segments: dict[str, None] = {}
        """Segments in memory, in the order of their loads."""
        self._running: tuple[str, ...] | None = None
        """Segments of the previous turn; None before the first turn."""
        self._free = budget

    def begin(self, resident: Iterable[str]) -> None:
        """Note that segments are in memory before the first turn."""
        for segment in resident:
            self._resident[segment] = None
            self._take_in([segment])

    @property
    def state(self) -> object:
        """State of simulated memory, which decides all later turns: cycles that begin with equal states are equal."""
        return self._running, tuple(self._resident)

    def turn(self, position: int) -> Step:
        """Simulate the turn at ``position`` (counted over all cycles), and return the turn with its transfers."""
        query = self._order[position % len(self._order)]
        wanted = self._profile.segments_of(query)
        missing = [segment for segment in wanted if segment not in self._segments]
        early = self._early(missing, wanted)
        ahead = self._load(early, {*(self._running or ()), *wanted}, position)
        ahead_of_all = self._rule.far and self._rule.ahead != "none" and self._running is not None
        if ahead_of_all and len(early) == len(missing):
            ahead = self._farther(ahead, position)
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
        """Choose missing segments to load while the previous turn runs; if not all fit, prefer the slowest loads.

        A segment that is computed comes after those that it is computed from.
        """
        if self._running is None or self._rule.ahead == "none":
            return []
        kept = {*self._running, *(segment for segment in wanted if segment in self._segments)}
        room = self._budget - self._bytes(kept)
        if self._bytes(missing) <= room:
            return list(missing)
        found: list[str] = []
        if self._rule.ahead == "part":
            specs = self._profile.segments
            for segment in sorted(missing, key=lambda name: (bool(specs[name].sources), -self._profile.load_ms(name))):
                spec, absent = specs[segment], set(missing).difference(found)
                if spec.bytes <= room and absent.isdisjoint(spec.sources):
                    found.append(segment)
                    room -= spec.bytes
        return found

    def _farther(self, ahead: Transfer, position: int) -> Transfer:
        """Add to the transfer ahead of a turn what later turns miss, as long as all fits that turns up to them need."""
        evict, load = list(ahead.evict), list(ahead.load)
        held = {*(self._running or ()), *self._profile.segments_of(self._order[position % len(self._order)])}
        for later in range(position + 1, position + len(self._order) - 1):
            query = self._order[later % len(self._order)]
            wanted = self._profile.segments_of(query)
            held.update(wanted)
            if self._bytes(held) > self._budget:
                break
            if missing := [segment for segment in wanted if segment not in self._segments]:
                more = self._load(missing, held, later)
                evict += more.evict
                load += more.load
                for unit in self._units_of(query):
                    self._resident.setdefault(unit)
        return Transfer(tuple(evict), tuple(load))

    def _load(self, segments: Sequence[str], held: Collection[str], position: int) -> Transfer:
        """Evict units (segments or whole models) by the rule until the segments ``segments`` fit, then load these.

        Segments in ``held`` are not evicted.
        """
        evicted = self._make_room(self._bytes(segments), held, position)
        self._take_in(segments)
        return Transfer(tuple(evicted), tuple(segments))

    def _take_in(self, segments: Sequence[str]) -> None:
        self._segments.update(dict.fromkeys(segments))
        self._free -= self._bytes(segments)

    def _make_room(self, needed: int, held: Collection[str], position: int) -> list[str]:
        """Evict units (segments or models) by the rule until ``needed`` bytes are free; return the evicted segments.

        Segments in ``held`` are not evicted.
        """
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
            # A large unit that was evicted last may free enough bytes alone: then smaller units before it stay.
            back = [segment for segment in self._units[unit] if segment not in self._segments]
            if self._free - self._bytes(back) >= needed:
                self._resident[unit] = None
                self._take_in(back)
        # In their former order: units that stayed are no more recently used than before.
        self._resident = {unit: None for unit in units if unit in self._resident}
        return [segment for segment in segments if segment not in self._segments]

    def _drop(self, unit: str, held: Collection[str]) -> None:
        """Evict a unit's (segment's or model's) segments, except those ``held`` and those of another unit in memory."""
        others = {segment for each in self._resident for segment in self._units[each]} if self._rule.whole else ()
        for segment in self._units[unit]:
            if segment in self._segments and segment not in held and segment not in others:
                del self._segments[segment]
                self._free += self._profile.segments[segment].bytes

    def _ranked(self, position: int) -> list[str]:
        """Return the units (segments or whole models) in memory, in the order in which the rule evicts them."""
        units = list(self._resident)
        if self._rule.evict == "least-recent":
            return units
        if self._rule.evict == "recent":
            return units[::-1]
        return sorted(units, key=lambda unit: -self._distance(unit, position))

    def _distance(self, unit: str, position: int) -> int:
        """Return the number of turns from ``position`` to the next use of a unit (segment or whole model)."""
        places, count = self._places[unit], len(self._order)
        now = position % count
        index = bisect_right(places, now)
        return places[index] - now if index < len(places) else places[0] + count - now

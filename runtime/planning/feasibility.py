"""Feasibility of minimum rates: which queries a plan gives fewer frames than they need, and what would be enough.

Four changes are tried: more memory, a longer SLA (time from arrival to answer), lower minimum rates, and leaving out a
query. A change is tried by making plans, at most 19 in all, whatever the number of queries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil, floor, sqrt

from .planner import Plan, Policy, make_plan
from .profile import Profile
from .promises import Promise, promises

__all__ = ["Shortage", "find_shortage"]

_SLACK = 1e-3
"""Fraction of a feed's frame rate by which a plan may fall short of a minimum rate that counts as reached."""
_MEMORY_HALVINGS = 5
"""Maximum number of bisection steps in the search for the least additional memory with which a plan is enough."""
_BYTES = 10_000
"""Bytes to a multiple of which additional memory is rounded up, unless less than 320,000 bytes are in question."""
_SLA_TENTHS = 100
"""Longest SLA (time from arrival to answer) that is tried, in tenths of the SLA that the user asked for."""
_SLA_HALVINGS = 4
"""Maximum number of bisection steps in the search for the shortest SLA (time to answer a frame) that is enough."""
_LESS = (1.0, 0.97, 0.9)
"""Factors by which the rates that a plan reaches are multiplied before they are tried as minimum rates.

A new plan may not reach exactly the same rates as the plan before.
"""
_LEFT_OUT = 4
"""Maximum number of queries that are left out, one at a time, to see whether all others reach their minimum rates."""


@dataclass(frozen=True)
class Shortage:
    """Queries to which a plan gives fewer frames than their minimum rates, and changes that would be enough."""

    missing: Mapping[str, Promise]
    """Query -> rates and accuracy that the plan promises, for the queries below their minimum rates."""
    changes: tuple[str, ...]
    """Changes of the workload or of memory, in words. Any one of these changes lets all queries reach their minimum
    rates."""

    def __str__(self) -> str:
        """Return one line that names the queries, and the changes that would be enough."""
        short = ", ".join(f"{name} gets {each.fps:.3g} of {each.min_fps:g}" for name, each in self.missing.items())
        if not self.changes:
            return f"min_fps is not reached: {short} frames per second; no single change was found that is enough"
        return f"min_fps is not reached: {short} frames per second; enough would be {' or '.join(self.changes)}"


def find_shortage(profile: Profile, budget: int, policy: Policy, plan: Plan) -> Shortage | None:
    """Return the queries that a plan keeps below their minimum rates, and changes that would be enough.

    If all rates are reached, None is returned at once. Otherwise up to 19 plans are made, each of which may take as
    long as making ``plan`` took.

    Args:
        profile: profile that the plan was made from.
        budget: maximum bytes of weights that may be in memory at once.
        policy: objective and constraints of the plan.
        plan: plan to judge.
    """
    missing = _missing(profile, plan)
    if not missing:
        return None
    changes = (
        _more_memory(profile, budget, policy),
        _longer_sla(profile, budget, policy, missing),
        _lower_rates(profile, budget, policy, missing),
        _one_less(profile, budget, policy, missing),
    )
    return Shortage(missing, tuple(change for change in changes if change is not None))


def _missing(profile: Profile, plan: Plan) -> dict[str, Promise]:
    """Return query -> promise of a plan (rates and accuracy), for the queries below their minimum rates."""
    found = promises(profile, plan)
    return {name: each for name, each in found.items() if each.fps < each.min_fps - _SLACK * each.feed_fps}


def _enough(profile: Profile, budget: int, policy: Policy) -> bool:
    """Make a plan, and return whether the plan gives all queries their minimum rates."""
    return not _missing(profile, make_plan(profile, budget, policy))


def _more_memory(profile: Profile, budget: int, policy: Policy) -> str | None:
    """Return, in words, how much more memory lets all queries reach their minimum rates.

    Return None if memory for all weights is not enough.
    """
    whole = profile.budget("all")
    if budget >= whole or not _enough(profile, whole, policy):
        return None
    unit = _BYTES if whole - budget >= _BYTES << _MEMORY_HALVINGS else 1
    low, high = 0, ceil((whole - budget) / unit)
    for _ in range(_MEMORY_HALVINGS):
        middle = (low + high) // 2
        if middle == low:
            break
        low, high = (low, middle) if _enough(profile, budget + middle * unit, policy) else (middle, high)
    return f"{high * unit / 1e6:.2f} MB more memory" if unit > 1 else f"{high} bytes more memory"


def _longer_sla(profile: Profile, budget: int, policy: Policy, missing: Collection[str]) -> str | None:
    """Return, in words, how long an SLA (time from arrival to answer) lets all queries reach their minimum rates.

    A longer SLA is tried for the queries in ``missing``, then for all queries. Return None if no SLA up to the longest
    one tried is enough.

    Args:
        profile: profile that the plan was made from.
        budget: maximum bytes of weights that may be in memory at once.
        policy: objective and constraints of plans.
        missing: queries below their minimum rates.
    """
    for names in dict.fromkeys((tuple(missing), tuple(profile.queries))):
        longer = partial(_with_sla, profile, names)
        if not _enough(longer(_SLA_TENTHS), budget, policy):
            continue
        low, high = 10, _SLA_TENTHS
        for _ in range(_SLA_HALVINGS):
            middle = round(sqrt(low * high))
            if middle in (low, high):
                break
            low, high = (low, middle) if _enough(longer(middle), budget, policy) else (middle, high)
        chosen = longer(high)
        times = {name: f"{chosen.sla_of(name):g} ms" for name in names}
        if len(set(times.values())) == 1:
            whose = "all queries" if len(names) == len(profile.queries) > 1 else _listed(names)
            return f"an SLA of {times[names[0]]} for {whose}"
        if len(names) == len(profile.queries):
            return f"an SLA {high / 10:g} times as long for all queries"
        return "an SLA of " + _listed(f"{time} for {name}" for name, time in times.items())
    return None


def _with_sla(profile: Profile, names: Collection[str], tenths: int) -> Profile:
    """Return a profile in which the SLA of some queries is ``tenths`` / 10 times as long."""
    return _changed(profile, {name: {"sla_ms": profile.sla_of(name) * tenths / 10} for name in names})


def _lower_rates(profile: Profile, budget: int, policy: Policy, missing: Mapping[str, Promise]) -> str | None:
    """Return, in words, lower minimum rates that a new plan reaches; None if no plan reaches those that are tried.

    Args:
        profile: profile that the plan was made from.
        budget: maximum bytes of weights that may be in memory at once.
        policy: objective and constraints of plans.
        missing: query -> promise of the plan, for the queries below their minimum rates.
    """
    for factor in _LESS:
        rates = {name: floor(each.fps * factor * 100) / 100 for name, each in missing.items()}
        if _enough(_changed(profile, {name: {"min_fps": rate} for name, rate in rates.items()}), budget, policy):
            return "min_fps of " + _listed(f"{rate:g} for {name}" for name, rate in rates.items())
    return None


def _one_less(profile: Profile, budget: int, policy: Policy, missing: Collection[str]) -> str | None:
    """Return, in words, a query without which all other queries reach their minimum rates; None if none is found.

    At most four queries are left out, one at a time. Queries of low priority come first, among these the ones of low
    weight, among these the ones that take the most time. Queries in ``missing`` come last.

    Args:
        profile: profile that the plan was made from.
        budget: maximum bytes of weights that may be in memory at once.
        policy: objective and constraints of plans.
        missing: queries below their minimum rates.
    """

    def time(name: str) -> float:
        """Return the milliseconds of loading a query's weights once and running all frames of one second."""
        load_ms = sum(map(profile.load_ms, profile.segments_of(name)))
        return load_ms + profile.run_ms(name, 1) * profile.queries[name].fps

    order = sorted(
        profile.queries.items(),
        key=lambda item: (item[0] in missing, item[1].priority, item[1].weight, -time(item[0])),
    )
    for name, _ in order[:_LEFT_OUT] if len(order) > 1 else []:
        others = {other: query for other, query in profile.queries.items() if other != name}
        if _enough(profile.model_copy(update={"queries": others}), budget, policy):
            return f"leaving out {name}"
    return None


def _changed(profile: Profile, changes: Mapping[str, Mapping[str, float]]) -> Profile:
    """Return a profile with changed fields of some queries.

    Args:
        profile: profile to change.
        changes: query -> name of a field -> value.
    """
    queries = {name: query.model_copy(update=changes.get(name)) for name, query in profile.queries.items()}
    return profile.model_copy(update={"queries": queries})


def _listed(words: Collection[str] | Iterator[str]) -> str:
    """Return words as a list in a sentence: ``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last

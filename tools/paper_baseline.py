"""Plans of the baselines, whose turn sizes are chosen by simulation.

gemel's planner judges a plan by a timeline in which fractions of a frame count, and cameras' clocks play no part. The
baseline of the Gemel paper tries its turn sizes in a simulation, so it knows how frames fall. Its plans here do so too:
they are tried on the very run that the tables show. A planner cannot know that run, so the baseline is given more
than it could have on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from gemel.runtime.planning.planner import Plan, Policy, plan_of
from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.search import best_of_orders

__all__ = ["Worth", "baseline_plan", "best_of_all"]

Worth = Callable[[Plan], tuple[float, ...]]
"""Function that simulates a plan, and returns what the plan is worth; the larger tuple is better."""


def baseline_plan(profile: Profile, budget: int, policy: Policy, worth: Worth) -> Plan:
    """Return a baseline's plan whose turn sizes no change of one query's size improves in simulation.

    Hill climbing starts from the sizes that gemel's search finds, once with prefetch and once without where the policy
    may choose.

    Args:
        profile: workload to plan.
        budget: maximum bytes of weights that may be in memory at once.
        policy: policy with the listed order of queries.
        worth: function that simulates a plan.
    """
    starts = _planned(profile, budget, policy)
    return max((_climbed(profile, start, worth) for start in starts), key=lambda found: found[0])[1]


def best_of_all(profile: Profile, budget: int, policy: Policy, worth: Worth) -> tuple[float, ...]:
    """Return what the best plan of a baseline is worth, of all turn sizes; takes minutes for more than five queries.

    The arguments are those of :func:`baseline_plan`.
    """
    order = tuple(profile.queries)
    every = product(*map(profile.batches, order))
    plans = product(_planned(profile, budget, policy), every)
    return max(worth(replace(plan, batches=dict(zip(order, sizes, strict=True)))) for plan, sizes in plans)


def _planned(profile: Profile, budget: int, policy: Policy) -> list[Plan]:
    """Return the plan that gemel's search finds, for each rule of eviction and prefetch that the policy may choose."""
    order = tuple(profile.queries)
    rules = (policy.rule, replace(policy.rule, ahead="none")) if policy.lazy else (policy.rule,)
    return [plan_of(profile, best_of_orders(profile, budget, [order], [rule], policy.objective)) for rule in rules]


def _climbed(profile: Profile, plan: Plan, worth: Worth) -> tuple[tuple[float, ...], Plan]:
    """Return the plan that hill climbing from ``plan`` ends at, after what it is worth."""
    tried: dict[tuple[int, ...], tuple[float, ...]] = {}

    def value(sizes: dict[str, int]) -> tuple[float, ...]:
        key = tuple(sizes.values())
        if key not in tried:
            tried[key] = worth(replace(plan, batches=sizes))
        return tried[key]

    sizes = plan.batches
    while True:
        changes = [{**sizes, query: size} for query in sizes for size in profile.batches(query) if size != sizes[query]]
        best = max(changes, key=value, default=sizes)
        if value(best) <= value(sizes):
            return value(sizes), replace(plan, batches=sizes)
        sizes = best

"""Making of a plan: the order in which queries take turns, and the frames of each turn, for the user's objective.

A device has memory for some of the models only, so queries take turns in a cycle, and weights are swapped between
turns. A plan decides three things.

- The *order* of turns. Queries that share weights should follow each other, because then there is less to load. The
  order determines which segments are loaded and evicted at each turn (:mod:`.residency`). A query may have several
  turns in a cycle.
- The *turn size* of each query: how many frames its turn takes. A long turn loads weights once for many frames, but
  frames get old while a query waits for its turn. A frame that cannot be answered within the SLA (time from arrival to
  answer) is lost.
- Which queries run together, in one *joint turn* (:mod:`.joint_turns`), if that saves time.

These decisions determine when turns begin, and how many frames are answered in time (:mod:`.timeline`). The user's
objective decides which of two plans is better (:mod:`.objectives`). :mod:`.search` looks for the best plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from ...errors import InputError
from .joint_turns import find_joint_turns, turn_profile
from .objectives import OBJECTIVES, ObjectiveName, Worth
from .profile import Profile
from .residency import Rule
from .search import FoundPlan, best_of_orders, search_plan

__all__ = ["POLICIES", "Plan", "Policy", "check_objective", "check_policy", "make_plan", "plan_of", "policy_of"]


@dataclass(frozen=True)
class Policy:
    """Planning policy: the objective of plans, and the constraints that plans must meet."""

    rule: Rule = field(default_factory=Rule)
    """Rule that chooses the segments to evict and to prefetch."""
    listed: bool = False
    """Whether every query has one turn in a cycle, in the order in which the profile lists them."""
    objective: ObjectiveName = "max-min"
    """Name of the objective; see :data:`.objectives.ObjectiveName`."""
    lazy: bool = False
    """Whether to make a second plan without prefetch, and to take the better of the two plans.

    Without prefetch, memory has room for one more model.
    """


_NEXUS = Rule("recent", whole=True, ahead="all", fill=False)
POLICIES = {
    "gemel": Policy(),
    "nexus": Policy(_NEXUS, listed=True, objective="max-min", lazy=True),
    "nexus+shared": Policy(_NEXUS, listed=True, objective="max-min", lazy=True),
    "lru": Policy(Rule("least-recent", ahead="none", fill=False), listed=True, objective="sum"),
}
"""Name of a planning policy -> objective and constraints of its plans.

``gemel`` is the default. The others are baselines, which keep the order in which the profile lists queries. ``nexus``
is the baseline of the GEMEL paper: it loads and evicts whole models, and evicts the most recently used model first. It
does not know of shared weights, so it needs an unmerged profile (:func:`.profile.unmerged`). ``nexus+shared`` is the
same policy for a profile with shared weights. ``lru`` evicts the least recently used segments and prefetches nothing.
"""


def check_policy(name: str) -> None:
    """Check that a planning policy with this name exists.

    Raises:
        InputError: the name is not one of :data:`POLICIES`.
    """
    if name not in POLICIES:
        raise InputError(f"--policy: {name!r} is not allowed: one of {', '.join(POLICIES)}")


def check_objective(objective: str | None, policies: Sequence[str] = ("gemel",)) -> None:
    """Check that an objective exists, and that one of several planning policies can serve it.

    Args:
        objective: name of the objective; None if the user gave none.
        policies: names of the policies.

    Raises:
        InputError: the objective is not one of :data:`.objectives.OBJECTIVES`, or none of the policies can
            serve it. The baselines have an objective of their own.
    """
    if objective is None:
        return
    if objective not in OBJECTIVES:
        raise InputError(f"--objective: {objective!r} is not allowed: one of {', '.join(OBJECTIVES)}")
    fixed = {name: POLICIES[name].objective for name in policies if POLICIES[name].listed}
    if len(fixed) == len(policies) and objective not in fixed.values():
        own = ", ".join(f"{name} serves {other}" for name, other in fixed.items())
        raise InputError(f"--objective: {objective!r} is not allowed with --policy {', '.join(policies)}: {own} only")


def policy_of(name: str, profile: Profile, objective: str | None = None) -> Policy:
    """Return a planning policy with the objective of a workload; baseline policies keep an objective of their own.

    Args:
        name: name of the policy, one of :data:`POLICIES`.
        profile: profile of the workload, which states the workload's objective.
        objective: name of the objective to serve instead of the workload's.

    Raises:
        InputError: the policy or the objective does not exist, or the policy cannot serve the objective.
    """
    check_policy(name)
    check_objective(objective, (name,))
    policy = POLICIES[name]
    if policy.listed:
        return policy
    return replace(policy, objective=profile.objective if objective is None else cast(ObjectiveName, objective))


@dataclass(frozen=True)
class Plan:
    """Order of turns, turn sizes and rule of eviction and prefetch, with the expected times, rates and accuracies."""

    order: tuple[str, ...]
    """Queries and joint turns in the order of turns; a query may have several turns. After the last turn, the cycle
    begins again."""
    batches: dict[str, int]
    """Query or joint turn -> turn size: maximum number of frames that a turn takes of each of its queries."""
    rule: Rule
    """Rule that chooses the segments to evict and to prefetch."""
    pinned: frozenset[str]
    """Segments of the blob that stay in memory in every cycle of the plan."""
    cycle_ms: float
    """Milliseconds of an average cycle of turns."""
    blocked_ms: float
    """Milliseconds of an average cycle in which a turn waits for weights; other queries may run meanwhile."""
    frames: dict[str, float]
    """Query -> expected frames per second that are answered within the SLA."""
    accuracy: dict[str, float] | None = None
    """Query -> expected accuracy of every frame's answer, 0 to 1; None if a query has no staleness curve."""
    joint: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a joint turn -> queries that run together in the turn. ``order`` and ``batches`` have the name of the
    joint turn instead of the names of its queries."""

    @property
    def sizes(self) -> dict[str, int]:
        """Query -> maximum number of the query's frames that one turn takes; includes the queries in joint turns."""
        return {query: size for turn, size in self.batches.items() for query in self.queries_of(turn)}

    def queries_of(self, turn: str) -> tuple[str, ...]:
        """Return the queries that run in a turn of the plan's order."""
        return self.joint.get(turn, (turn,))


def make_plan(profile: Profile, budget: int, policy: Policy | None = None) -> Plan:
    """Return the best plan of a workload that the search finds. Equal arguments give equal plans.

    Args:
        profile: sizes, times and rates of the workload on its device.
        budget: maximum bytes of weights that may be in memory at once; see :meth:`.profile.Profile.budget`.
        policy: objective and constraints of the plan; the default policy if left out.

    Raises:
        InputError: the objective is about accuracy, and a query has no staleness curve.
    """
    policy = policy or Policy()
    if policy.objective in ("accuracy", "mean-accuracy"):
        for name, query in profile.queries.items():
            if query.staleness is None:
                raise InputError(
                    f"objective {policy.objective}: query {name} has no staleness curve, which says how accurate an old"
                    " answer is; gemel eval BUNDLE --staleness FILE measures it"
                )
    queries = tuple(profile.queries)
    if policy.listed:
        rules = (policy.rule, replace(policy.rule, ahead="none")) if policy.lazy else (policy.rule,)
        return plan_of(profile, best_of_orders(profile, budget, [queries], rules, policy.objective))
    plan = plan_of(profile, search_plan(profile, budget, policy.rule, policy.objective))
    joint = find_joint_turns(profile, budget)
    if not joint:
        return plan
    turns = turn_profile(profile, joint, policy.objective)
    together = _for_queries(plan_of(turns, search_plan(turns, budget, policy.rule, policy.objective)), queries, joint)
    return max(plan, together, key=lambda made: _worth(profile, made, policy.objective))


def _for_queries(plan: Plan, queries: Sequence[str], joint: Mapping[str, tuple[str, ...]]) -> Plan:
    """Convert the expected rates and accuracies of a plan from joint turns to single queries, and return the plan.

    Args:
        plan: plan that states expected rates and accuracies for joint turns instead of their queries.
        queries: names of all queries of the workload.
        joint: name of a joint turn -> queries that run together in the turn.
    """
    turn_of = {query: query for query in queries} | {query: turn for turn, group in joint.items() for query in group}
    accuracy = plan.accuracy
    return replace(
        plan,
        frames={query: plan.frames[turn] for query, turn in turn_of.items()},
        accuracy=None if accuracy is None else {query: accuracy[turn] for query, turn in turn_of.items()},
        joint=joint,
    )


def _worth(profile: Profile, plan: Plan, objective: ObjectiveName) -> tuple[float, ...]:
    """Return the numbers that rank a plan by an objective; of two plans, the better one has the larger tuple."""
    queries = tuple(profile.queries)
    frames = np.array([[plan.frames[query] for query in queries]])
    accuracy = None if plan.accuracy is None else np.array([[plan.accuracy[query] for query in queries]])
    rows = Worth(profile, queries, objective).rows(frames, accuracy, np.array([plan.cycle_ms]))
    return tuple(rows[0].tolist())


def plan_of(profile: Profile, found: FoundPlan) -> Plan:
    """Convert the result of a search into a plan for a conductor."""
    queries = tuple(profile.queries)
    used = {segment for query in queries for segment in profile.segments_of(query)}
    turns = [turn for cycle in found.cycles for turn in cycle]
    evicted = {segment for turn in turns for part in (turn.ahead, turn.then) for segment in part.evict}
    accuracy = found.outcome.accuracy
    return Plan(
        found.order,
        batches=dict(zip(queries, found.sizes.tolist(), strict=True)),
        rule=found.rule,
        pinned=frozenset(used - evicted),
        cycle_ms=float(found.outcome.cycle_ms[0]),
        blocked_ms=float(found.outcome.blocked_ms[0]),
        frames=dict(zip(queries, found.outcome.frames[0].tolist(), strict=True)),
        accuracy=None if accuracy is None else dict(zip(queries, accuracy[0].tolist(), strict=True)),
    )

"""Joint turns: queries that run together in one turn, because that takes less time than one turn for each query.

Queries of one feed whose models begin with the same *stem* (first layers) run the stem once for each frame. Queries of
one model on one feed run the model once for each frame. Queries of one model on different feeds run the model once for
the frames of all their feeds, if larger batches are faster. In a plan, a joint turn takes the place of its queries: it
has a name of its own, and stands in the order of turns like a query.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from .objectives import ObjectiveName
from .profile import ModelProfile, Profile, QueryProfile, StemProfile

__all__ = ["find_joint_turns", "turn_profile"]

_GAIN = 0.97
"""Maximum time of a joint turn, as a fraction of the time of separate turns."""


def find_joint_turns(profile: Profile, budget: int) -> dict[str, tuple[str, ...]]:
    """Return name of a joint turn -> queries that run together in the turn, for all joint turns that save time.

    The queries of a joint turn have equal rates, weights and priorities, and their weights fit into memory together.

    Args:
        profile: sizes, times and rates of the workload on its device.
        budget: maximum bytes of weights that may be in memory at once.
    """
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, query in profile.queries.items():
        stem = _stem(profile, name)
        shared = (query.model,) if stem is None else (stem.id, query.feed)
        groups[shared, query.fps, query.weight, query.priority, query.staleness is None].append(name)
    parts = [part for group in groups.values() for part in _parts(profile, group)]
    return {"+".join(part): part for part in parts if len(part) > 1 and _fits(profile, budget, part)}


def turn_profile(profile: Profile, members: Mapping[str, Sequence[str]], objective: ObjectiveName) -> Profile:
    """Return a profile in which each joint turn takes the place of its queries, as one query of one model.

    Args:
        profile: sizes, times and rates of the workload on its device.
        members: name of a joint turn -> queries that run together in the turn.
        objective: name of the plan's objective, which decides how much weight a joint turn has.
    """
    if not members:
        return profile
    models, queries = dict(profile.models), dict(profile.queries)
    for name, group in members.items():
        models[name] = ModelProfile(segments=_segments(profile, group), run_ms=_run_ms(profile, group))
        queries[name] = _as_one(profile, name, group, objective)
    for query in chain.from_iterable(members.values()):
        del queries[query]
    return profile.model_copy(update={"models": models, "queries": queries})


def _parts(profile: Profile, group: Sequence[str]) -> list[tuple[str, ...]]:
    """Divide a group of queries into subgroups, each of which saves time by running in one turn.

    A query may be alone in its subgroup. If queries that share a stem save no time, no subgroup is returned.

    Args:
        profile: sizes, times and rates of the workload on its device.
        group: queries of one feed whose models share a stem (first layers), or queries of one model.
    """
    if _stem(profile, group[0]) is not None:
        return [tuple(group)] if _pays(profile, [[query] for query in group]) else []
    by_feed: dict[str, list[str]] = defaultdict(list)
    for query in group:
        by_feed[_feed(profile, query)].append(query)
    # Queries of one model on one feed always run together: the model runs once for all of them.
    parts = list(by_feed.values())
    most = max(profile.models[profile.queries[group[0]].model].run_ms)
    larger = [parts[start : start + most] for start in range(0, len(parts), most)]
    return [
        part
        for joined in larger
        for part in ([tuple(chain(*joined))] if _pays(profile, joined) else map(tuple, joined))
    ]


def _stem(profile: Profile, query: str) -> StemProfile | None:
    """Return the stem (first layers) of a query's model; None if there is none, or the query has its own feed."""
    spec = profile.queries[query]
    return None if spec.feed is None else profile.models[spec.model].stem


def _feed(profile: Profile, query: str) -> str:
    """Return the name of a query's feed; if the feed has none, a name that is made from the query's name."""
    return profile.queries[query].feed or f"query {query}"


def _fits(profile: Profile, budget: int, group: Sequence[str]) -> bool:
    """Return whether the weights of all queries of a group fit together into ``budget`` bytes of memory."""
    return sum(profile.segments[segment].bytes for segment in _segments(profile, group)) <= budget


def _pays(profile: Profile, parts: Sequence[Sequence[str]]) -> bool:
    """Return whether one joint turn for several subgroups of queries saves time, for at least one turn size.

    The joint turn must take at most 97 % of the time of one turn for each subgroup, and no longer than the shortest SLA
    (time from arrival to answer) of the queries.

    Args:
        profile: sizes, times and rates of the workload on its device.
        parts: subgroups of queries.
    """
    group = list(chain(*parts))
    sla_ms = min(map(profile.sla_of, group))
    apart = [_run_ms(profile, part) for part in parts]
    return len(parts) > 1 and any(
        time <= min(sla_ms, _GAIN * sum(times[size] for times in apart))
        for size, time in _run_ms(profile, group).items()
    )


def _segments(profile: Profile, group: Iterable[str]) -> tuple[str, ...]:
    """Return the segments that the queries of a group need, without repeats."""
    return tuple(dict.fromkeys(chain.from_iterable(map(profile.segments_of, group))))


def _run_ms(profile: Profile, group: Sequence[str]) -> dict[int, float]:
    """Return turn size -> milliseconds of a joint turn in which each query takes that number of frames."""
    models = dict.fromkeys(profile.queries[query].model for query in group)
    times = [profile.models[model].run_ms for model in models]
    stem = _stem(profile, group[0])
    if stem is None or len(models) == 1:
        feeds = len({_feed(profile, query) for query in group})
        batches = profile.models[next(iter(models))].as_batch
        # Frames of several feeds gain nothing where they run one by one, whatever was measured by chance.
        sizes = [size for size in times[0] if feeds == 1 or any(size * feeds <= batch for batch in batches)]
        return {size: profile.run_ms(group[0], size * feeds) for size in sizes if size * feeds <= max(times[0])}
    sizes = [size for size in times[0] if all(size in each for each in times)]
    # The time of each model includes a run of the stem, but the joint turn runs the stem only once.
    saved = (len(models) - 1) * stem.run_ms
    return {
        size: max(max(each[size] for each in times), sum(each[size] for each in times) - saved * size) for size in sizes
    }


def _as_one(profile: Profile, model: str, group: Sequence[str], objective: ObjectiveName) -> QueryProfile:
    """Return one query that stands for a group of queries in a joint turn, so that a plan can be made for the group.

    The query has the shortest SLA and the highest minimum rate of the group. If the objective is about the lowest share
    or accuracy, the query's staleness curve is the lowest of the group at each age, and the weight is that of a single
    query. Otherwise the curve is the mean, and the weight counts once for each query of the group.

    Args:
        profile: sizes, times and rates of the workload on its device.
        model: name of the joint turn, which is also the name of the query's model.
        group: queries that run together in the joint turn.
        objective: name of the plan's objective.
    """
    specs = [profile.queries[query] for query in group]
    first = specs[0]
    lexicographic = objective in ("max-min", "accuracy")
    staleness = None
    if all(spec.staleness for spec in specs):
        curves = [spec.staleness or () for spec in specs]
        ages = range(max(map(len, curves)))
        values = [[curve[min(age, len(curve) - 1)] for curve in curves] for age in ages]
        staleness = tuple(min(each) if lexicographic else sum(each) / len(each) for each in values)
    return first.model_copy(
        update={
            "model": model,
            "sla_ms": min(map(profile.sla_of, group)),
            "min_fps": max(spec.min_fps for spec in specs),
            # In a sum, the turn counts once for each of its queries.
            "weight": first.weight if lexicographic else first.weight * len(group),
            "staleness": staleness,
        }
    )

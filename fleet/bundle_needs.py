"""Needs of the queries of bundles: bytes of weights by tensor, load by profiles, and boxes that their feeds allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ..bundles.manifest import Manifest
from ..bundles.reader import Bundle
from ..errors import InputError
from ..runtime.planning.profile import Profile
from .boxes_file import BoxSettings
from .placement_case import PlacedBox, PlacedQuery, PlacementCase, make_case

__all__ = ["Rate", "case_of", "check_bundles", "loads_of", "seen_feeds"]

Rate = Literal["feed", "min"]
"""Frames per second that a query must answer. ``feed``: all frames of its feed. ``min``: ``min_fps`` of the query,
where the query has one."""
_MOST_NAMES = 5
"""Maximum number of queries that a message names."""


def check_bundles(bundles: Sequence[Bundle]) -> None:
    """Check that the names of queries and feeds mean one thing each in all bundles, and that there are queries.

    Raises:
        InputError: two bundles have a query of one name, or different feeds of one name, or a bundle has no queries.
    """
    for index, bundle in enumerate(bundles):
        if bundle.path.resolve() in (other.path.resolve() for other in bundles[:index]):
            raise InputError(f"{bundle.path}: is given twice")
    query_of: dict[str, Bundle] = {}
    feed_of: dict[str, Bundle] = {}
    for bundle in bundles:
        if not bundle.manifest.queries:
            raise InputError(f"{bundle.path}: has no queries")
        for name in bundle.manifest.queries:
            if (other := query_of.setdefault(name, bundle)) is not bundle:
                raise InputError(f"query {name!r} is in {other.path} and in {bundle.path}; names must be unique")
        for name, feed in bundle.manifest.feeds.items():
            other = feed_of.setdefault(name, bundle)
            if other.manifest.feeds[name] != feed:
                raise InputError(
                    f"feed {name!r} of {bundle.path} is another one than that of {other.path};"
                    " feeds of one name must be equal"
                )


def seen_feeds(bundles: Sequence[Bundle]) -> frozenset[str]:
    """Return the feeds of bundles that queries see."""
    return frozenset(query.feed for bundle in bundles for query in bundle.manifest.queries.values())


def loads_of(bundles: Sequence[Bundle], profiles: Sequence[Profile], rate: Rate) -> dict[str, float]:
    """Return query -> seconds per second that a run keeps the measured box busy.

    That is the run time of one frame alone times the frames per second, so it is an upper bound: turns of several
    frames and stems can only lower it.

    Args:
        bundles: bundles of the queries.
        profiles: profiles of the bundles. Queries of a profile that no bundle has are left out.
        rate: frames per second that count.

    Raises:
        InputError: a query is in no profile, or in two.
    """
    loads: dict[str, float] = {}
    names = {name: bundle for bundle in bundles for name in bundle.manifest.queries}
    for profile in profiles:
        for name, query in profile.queries.items():
            if name not in names:
                continue
            if name in loads:
                raise InputError(f"query {name!r} is in two profiles; one is expected")
            fps = query.min_fps if rate == "min" and query.min_fps else query.fps
            loads[name] = profile.run_ms(name, 1) * fps / 1e3
    if missing := [name for name in names if name not in loads]:
        more = f" and {len(missing) - _MOST_NAMES} more" if len(missing) > _MOST_NAMES else ""
        raise InputError(
            f"no run times of {', '.join(missing[:_MOST_NAMES])}{more}: measure them with gemel profile"
            f" {names[missing[0]].path} -o profile.yaml and give --profile profile.yaml, or --memory-only"
        )
    return loads


def case_of(bundles: Sequence[Bundle], boxes: Sequence[BoxSettings], loads: Mapping[str, float]) -> PlacementCase:
    """Return the placement of the queries of bundles on boxes, as numbers.

    Args:
        bundles: bundles that :func:`check_bundles` accepted.
        boxes: boxes, whose feeds exist.
        loads: query -> load; queries that are left out have none.
    """
    homes: dict[str, set[int]] = {}
    for index, box in enumerate(boxes):
        for feed in box.feeds:
            homes.setdefault(feed, set()).add(index)
    queries, weights = [], []
    for number, bundle in enumerate(bundles):
        content = bundle.manifest
        for name, query in content.queries.items():
            allowed = homes.get(query.feed, range(len(boxes)))
            queries.append(PlacedQuery(name, loads.get(name, 0.0), frozenset(allowed), query.weight, query.priority))
            weights.append(_weights_of(content, query.model, number))
    placed = [PlacedBox(box.name, box.memory, box.speed, box.max_queries) for box in boxes]
    return make_case(queries, placed, weights)


def _weights_of(content: Manifest, name: str, number: int) -> dict[str, int]:
    """Return name of a tensor, a computed kernel or a private copy -> bytes, for all that a model holds in memory.

    Args:
        content: manifest of the bundle.
        name: name of the model.
        number: number of the bundle. Private copies are never shared, not even with an equal model of another bundle.
    """
    model = content.models[name]
    if model.mode == "constant" and model.precision != "int8":
        return {f"private copy {number} {name}": model.bytes}
    tensors = {
        tensor: content.tensors[tensor].length
        for segment in model.segments
        for tensor in content.segments[segment].tensors
    }
    computed = {weight: content.bytes_of(weight) for weight in model.weights if weight in content.forms}
    return {**tensors, **{f"computed {weight}": size for weight, size in computed.items()}}

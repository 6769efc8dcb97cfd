"""Choice of the cases of an evaluation: bundles, budgets and policies. No function here runs a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ...bundles.budget import budget
from ...bundles.manifest import Manifest
from ...bundles.reader import Bundle
from ...errors import InputError

__all__ = ["DEFAULT_MEMORY", "Case", "WeightBytes", "budgets", "cases", "check_same"]

DEFAULT_MEMORY: tuple[str, ...] = ("min", "50%", "75%", "all")
"""Memory settings that ``gemel eval`` evaluates if the user names none."""


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of memory that the weights of a bundle need on a backend."""

    total: int
    """Bytes of memory for all weights of a bundle."""
    least: int
    """Minimum bytes of memory with which a bundle runs: those for the weights of its largest model."""


@dataclass(frozen=True)
class Case:
    """One live run of an evaluation: a bundle under a memory budget and a policy."""

    bundle: str
    """Name of the bundle that a run evaluates: ``bundle``, ``unmerged`` or ``merged``."""
    memory: str | int
    """Memory setting of a run, from :func:`gemel.bundles.budget.parse_memory`."""
    budget: int
    """Bytes that the memory setting of a run allows for weights."""
    policy: str | None
    """Name of a run's planning policy; None if all weights fit, because all policies do the same then."""


def budgets(memory: Sequence[str | int] | None, weights: Mapping[str, WeightBytes]) -> dict[str | int, int]:
    """Return memory setting -> bytes for weights, the same for all bundles, so that bundles can be compared.

    Args:
        memory: memory settings; None for the settings of :data:`DEFAULT_MEMORY` that are enough for every model.
        weights: bundle name -> bytes of its weights. Percentages and ``all`` refer to the first bundle; ``min`` is
            enough for the largest model of all bundles.

    Raises:
        InputError: a setting that the caller named is too small for a model.
    """
    total, least = next(iter(weights.values())).total, max(each.least for each in weights.values())
    found: dict[str | int, int] = {}
    # The user did not ask for any single default setting, so one that is too small is left out.
    skipped = (InputError,) if memory is None else ()
    for setting in DEFAULT_MEMORY if memory is None else memory:
        with suppress(*skipped):
            found[setting] = budget(setting, total, [least])
    return found


def cases(
    allowed: Mapping[str | int, int], policies: Sequence[str], weights: Mapping[str, WeightBytes]
) -> tuple[Case, ...]:
    """Return the cases of an evaluation to run. Cases that are compared follow each other, so that a busy machine
    affects them alike.

    Args:
        allowed: memory setting -> bytes for weights, from :func:`budgets`.
        policies: names of the policies to compare.
        weights: bundle name -> bytes of its weights.
    """
    return tuple(
        Case(bundle, setting, size, None if fits else policy)
        for setting, size in allowed.items()
        for place, policy in enumerate(policies)
        for bundle, needs in weights.items()
        # If all weights fit, nothing is swapped and all policies do the same: the first one is enough.
        if not (fits := needs.total <= size) or place == 0
    )


def check_same(bundle: Bundle, against: Bundle) -> None:
    """Check that the answers of two bundles can be compared.

    Raises:
        InputError: a query, a feed or the SLA differs between the bundles.
    """
    ours, theirs = _meaning(bundle.manifest), _meaning(against.manifest)
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise InputError(f"{against.path}: {name} is not the same as in {bundle.path}; both need the same workload")


def _meaning(content: Manifest) -> dict[str, object]:
    """Return name -> setting of a bundle, for the settings that must be equal in two bundles to compare.

    Sources of feeds may differ, because both bundles run on the same source. Weights, priorities and minimum rates of
    queries may differ, because answers are judged in the same way.
    """
    return {
        "the SLA": content.sla_ms,
        **{f"feed {name!r}": (feed.fps, feed.loop) for name, feed in content.feeds.items()},
        **{
            f"query {name!r}": (query.feed, query.task, query.labels, query.classes, query.threshold, query.sla_ms)
            for name, query in content.queries.items()
        },
    }

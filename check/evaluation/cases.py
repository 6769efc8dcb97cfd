"""What is tried: bundles, budgets and policies. Decisions only; nothing is run here."""

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


@dataclass(frozen=True)
class WeightBytes:
    """Bytes that the weights of a bundle need on a backend: all of them, and those of the hungriest model."""

    total: int
    least: int


@dataclass(frozen=True)
class Case:
    """A bundle, by name, under a budget."""

    bundle: str
    memory: str | int
    """The setting, as :func:`gemel.bundles.budget.parse_memory` returns it."""
    budget: int
    """Bytes."""
    policy: str | None
    """None where all weights fit: every policy does the same then."""


def budgets(memory: Sequence[str | int] | None, weights: Mapping[str, WeightBytes]) -> dict[str | int, int]:
    """Bytes of each memory setting, the same for all bundles, so that they can be compared.

    Args:
        memory: settings; left out, those of :data:`DEFAULT_MEMORY` that are enough for every model.
        weights: of each bundle. Shares, and ``all``, are of the first one; ``min`` is enough for each of them.

    Raises:
        InputError: a setting is too small.
    """
    total, least = next(iter(weights.values())).total, max(each.least for each in weights.values())
    found: dict[str | int, int] = {}
    # Nobody asked for those of the default one by one.
    skipped = (InputError,) if memory is None else ()
    for setting in DEFAULT_MEMORY if memory is None else memory:
        with suppress(*skipped):
            found[setting] = budget(setting, total, [least])
    return found


def cases(
    allowed: Mapping[str | int, int], policies: Sequence[str], weights: Mapping[str, WeightBytes]
) -> tuple[Case, ...]:
    """In an order in which what is compared runs one after the other: a busy minute is bad for both.

    Args:
        allowed: bytes of each setting.
        policies: names.
        weights: of each bundle.
    """
    return tuple(
        Case(bundle, setting, size, None if fits else policy)
        for setting, size in allowed.items()
        for place, policy in enumerate(policies)
        for bundle, needs in weights.items()
        # Where nothing is swapped, there is nothing that policies could do differently.
        if not (fits := needs.total <= size) or place == 0
    )


def check_same(bundle: Bundle, against: Bundle) -> None:
    """Refuse bundles whose answers mean different things.

    Raises:
        InputError: a query, a feed or the SLA of one is not that of the other.
    """
    ours, theirs = _meaning(bundle.manifest), _meaning(against.manifest)
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise InputError(f"{against.path}: {name} is not the same as in {bundle.path}; both need the same workload")


def _meaning(content: Manifest) -> dict[str, object]:
    """What two bundles must agree in. Not the sources of feeds, which are paths: one of them is used for both."""
    return {
        "the SLA": content.sla_ms,
        **{f"feed {name!r}": (feed.fps, feed.loop) for name, feed in content.feeds.items()},
        **{
            f"query {name!r}": (query.feed, query.task, query.labels, query.threshold)
            for name, query in content.queries.items()
        },
    }

"""Choice of the queries that share runs of a stem: pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from ...bundles.manifest import Manifest
from .protocol import StemTimes

__all__ = ["shared_stems"]

_WORTH = 0.95
"""Fraction of the time of whole models below which a stem counts as faster. Measured times are 5 % uncertain."""


def shared_stems(content: Manifest, times: Mapping[str, StemTimes], queries: Collection[str]) -> dict[str, str]:
    """Return query -> id of the stem that the query shares with other queries of its feed.

    Queries share a stem where one run of the stem and a run of each rest take less time than the whole models.

    Args:
        content: manifest of the bundle.
        times: model -> run times, for the models that can be run in parts; see :attr:`.protocol.Backend.stems`.
        queries: names of the queries that run.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in queries:
        query = content.queries[name]
        stem = content.models[query.model].stem
        if stem is not None and query.model in times:
            groups[query.feed, stem.id].append(name)
    return {
        name: stem
        for (_, stem), members in groups.items()
        if _pays([times[content.queries[name].model] for name in members])
        for name in members
    }


def _pays(members: list[StemTimes]) -> bool:
    """Return whether running a stem once for some queries takes less time than running their models whole."""
    parts = max(each.stem_ms for each in members) + sum(each.rest_ms for each in members)
    return len(members) > 1 and parts < _WORTH * sum(each.main_ms for each in members)

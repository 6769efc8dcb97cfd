"""Turn workloads of known architectures into profiles for the simulator, with some of their layers merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from paper_models import Architecture, Fit

from gemel.merging.layers.groups import groups_of
from gemel.merging.layers.layers import Layer
from gemel.runtime.planning.profile import Profile, parse_profile

__all__ = ["BATCHES", "MERGES", "Query", "Setting", "potential", "profile_of", "read_workloads"]

BATCHES = (1, 2, 4)
"""Batch sizes that the scheduler of the Gemel paper chooses from."""

MERGES = {"siblings": 64.5 / 64.5, "siblings, heuristic": 31.9 / 64.5, "strangers": 3.68 / 15.88}
"""Kind of merge -> part of a workload's potential that such a merge saves at a target of 95 %, by docs/merging.md.

``siblings``: W1 between models, 64.5 % of the bytes of layers, which is all that can be shared; at 98 % too. W2 also
saves all, 58.4 %. ``siblings, heuristic``: W1 by the paper's heuristic. ``strangers``: W3, 3.68 of 15.88 MB.
"""


@dataclass(frozen=True)
class Query:
    """Query of a workload of the Gemel paper: a feed, an architecture and a task."""

    feed: str
    architecture: str
    task: str

    @property
    def name(self) -> str:
        return f"{self.task}-{self.feed}-{self.architecture}"


@dataclass(frozen=True)
class Setting:
    """Parameters of a simulated run that sweeps vary; the defaults are the paper's, and a merge of siblings."""

    fps: float = 30.0
    sla_ms: float = 100.0
    merged: float = MERGES["siblings"]
    """Fraction of a workload's potential saving that is merged, heaviest layers first; 0 is the unmerged workload."""
    batches: tuple[int, ...] = BATCHES
    """Batch sizes that the scheduler chooses from; a batch of n frames takes n times as long as one frame."""
    tensors: bool = False
    """Whether a model's load time is divided among its segments by bytes and number of tensors; otherwise by bytes."""


def read_workloads(path: Path) -> dict[str, tuple[Query, ...]]:
    """Read a YAML file of workloads, name -> queries, each listed as ``[feed, architecture, task]``."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        name: tuple(Query(str(feed), architecture, task) for feed, architecture, task in queries)
        for name, queries in document.items()
    }


def potential(queries: Sequence[Query], known: Mapping[str, Architecture]) -> float:
    """Return the fraction of a workload's bytes that is saved if its models share every layer that they can."""
    return sum(map(_saving, _columns(queries, known))) / sum(known[query.architecture].bytes for query in queries)


def profile_of(
    queries: Sequence[Query], known: Mapping[str, Architecture], fit: Fit, setting: Setting | None = None
) -> Profile:
    """Return the profile of a workload on the paper's device, where each query has its own model.

    Layers are merged in gemel's pairs: the k-th layer of a definition in one model with the k-th in every other model.
    Tensors used by the same models form a segment.

    Args:
        queries: queries of the workload.
        known: architectures by name.
        fit: estimate of load and run times that the paper's slides do not give.
        setting: frame rate, SLA, merged fraction and batch sizes; None for the paper's.
    """
    setting = setting or Setting()
    overhead = fit.ms_per_tensor / fit.ms_per_mb * 1e6 if setting.tensors else 0.0
    users = {query.name: known[query.architecture] for query in queries}
    times = {name: fit.times(each) for name, each in users.items()}
    # Models that use a segment -> bytes and tensors of the segment.
    parts: dict[tuple[str, ...], Size] = {(name,): Size(each.bytes, each.tensors) for name, each in users.items()}
    for column in _merged(_columns(queries, known), setting.merged):
        owners = tuple(layer.model for layer in column)
        one = Size(column[0].bytes, 1)
        parts[owners] = parts.get(owners, Size(0, 0)).plus(one, 1)
        for name in owners:
            parts[name,] = parts[name,].plus(one, -1)
    segments: dict[str, dict[str, Any]] = {}
    held: dict[str, list[str]] = {name: [] for name in users}
    for owners, size in parts.items():
        segment = owners[0] if len(owners) == 1 else f"shared-{len(segments) - len(users) + 1}"
        # Models load at different speeds; a shared segment gets the speed of the slowest of its models.
        slowest = max(times[name][0] / Size(users[name].bytes, users[name].tensors).cost(overhead) for name in owners)
        segments[segment] = {"bytes": size.bytes, "load_ms": round(slowest * size.cost(overhead), 4)}
        for name in owners:
            held[name].append(segment)
    return parse_profile(
        {
            "sla_ms": setting.sla_ms,
            "segments": segments,
            "models": {
                name: {
                    "segments": held[name],
                    "run_ms": {size: round(size * times[name][1], 4) for size in setting.batches},
                }
                for name in users
            },
            "queries": {query.name: {"model": query.name, "fps": setting.fps, "feed": query.feed} for query in queries},
        }
    )


class Size(NamedTuple):
    """Size of a set of weight tensors: their bytes and their number."""

    bytes: int
    tensors: int

    def plus(self, other: Size, sign: int) -> Size:
        """Return the sum of this size and ``other``, or the difference if ``sign`` is -1."""
        return Size(self.bytes + sign * other.bytes, self.tensors + sign * other.tensors)

    def cost(self, overhead: float) -> float:
        """Return the number of bytes to which load time is proportional; each tensor counts ``overhead`` bytes more."""
        return self.bytes + overhead * self.tensors


Column = tuple[Layer, ...]
"""Layers of different models that can share one tensor."""


def _columns(queries: Sequence[Query], known: Mapping[str, Architecture]) -> list[Column]:
    """Return the layers of a workload's models that can share a tensor, largest saving first."""
    layers = [replace(layer, model=query.name) for query in queries for layer in known[query.architecture].layers]
    found: list[Column] = []
    for group in groups_of(layers):
        by_model: dict[str, list[Layer]] = {}
        for layer in group.layers:
            by_model.setdefault(layer.model, []).append(layer)
        rows = by_model.values()
        columns = (tuple(row[place] for row in rows if len(row) > place) for place in range(max(map(len, rows))))
        found += [column for column in columns if len(column) > 1]
    return sorted(found, key=lambda column: -_saving(column))


def _saving(column: Column) -> int:
    return column[0].bytes * (len(column) - 1)


def _merged(columns: Sequence[Column], part: float) -> list[Column]:
    """Return the layers that share if at most the fraction ``part`` of all savings is saved, the heaviest first.

    Where a whole column would save too much, as many of its models as possible share their layers.
    """
    left = part * sum(map(_saving, columns))
    found: list[Column] = []
    for column in columns:
        # The small number keeps rounding from losing a model.
        members = min(len(column), 1 + int(left / column[0].bytes + 1e-9))
        if members > 1:
            found.append(column[:members])
            left -= _saving(found[-1])
    return found

"""Comparisons of docs/paper.md: which simulated runs are set against which, and in which settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from paper_merge import MERGES, Query, Setting
from paper_runs import Cell, Outcome, Runs

__all__ = [
    "BARS",
    "CHANGES",
    "MEASURES",
    "PARTS",
    "SAME",
    "SHORT",
    "SIBLINGS",
    "STRANGERS",
    "SUM",
    "SWEEPS",
    "UNMERGED",
]
__all__ += ["Change", "changes", "composition", "outcomes", "swept_changes"]

UNMERGED, SIBLINGS, STRANGERS = (Setting(merged=part) for part in (0.0, MERGES["siblings"], MERGES["strangers"]))
SHORT = ("min", "50 %", "75 %")
"""Memory settings that are too small for all weights, so that models swap."""
_SWEPT = ("50 %",)
"""Memory settings of sweeps."""
_SWEPT_QUERIES = 8
"""Maximum number of queries of a workload that sweeps have: trying turn sizes for more of them would take hours."""
SUM = "gemel, sum"
"""Policy of gemel with the objective ``sum``."""


BARS = {
    "nexus, unmerged": ("nexus", UNMERGED),
    "nexus, merged": ("nexus+shared", SIBLINGS),
    "gemel, unmerged": ("gemel", UNMERGED),
    "gemel, merged": ("gemel", SIBLINGS),
}
"""Title of a column -> policy and setting."""


class Change(NamedTuple):
    """Comparison of simulated runs: the new side and the old one, each a policy and whether the workload is merged."""

    new: tuple[str, bool]
    old: tuple[str, bool]

    @property
    def merges(self) -> bool:
        """Whether a merge plays a part."""
        return self.new[1] or self.old[1]


_BASELINE = "nexus", False
CHANGES = {
    "merging alone": Change(("nexus+shared", True), _BASELINE),
    "planning alone": Change(("gemel", False), _BASELINE),
    "both": Change(("gemel", True), _BASELINE),
    "both, objective `sum`": Change((SUM, True), _BASELINE),
    "planning, where merged": Change(("gemel", True), ("nexus+shared", True)),
}
PARTS = ("merging alone", "planning alone", "both")
"""Comparisons, of :data:`CHANGES`, that sweeps have."""
SAME = {"unmerged": (CHANGES["planning alone"], UNMERGED)} | {
    f"merged as {name}": (CHANGES["planning, where merged"], setting)
    for name, setting in (("siblings", SIBLINGS), ("strangers", STRANGERS))
}
"""Models -> comparison of gemel and nexus on the same models."""
MEASURES: Mapping[str, Callable[[Outcome], float]] = {
    "frames": lambda outcome: outcome.processed,
    "slowest query": lambda outcome: outcome.lowest,
}
Sweeps = Mapping[str, Sequence[tuple[str, Setting]]]
"""What is varied -> value and setting of each point of a sweep."""
SWEEPS: Sweeps = {
    "frames a second": tuple((f"{fps:g}", Setting(fps=fps)) for fps in (5.0, 10.0, 30.0)),
    "SLA, ms": tuple((f"{sla:g}", Setting(sla_ms=sla)) for sla in (50.0, 100.0, 200.0)),
    "merged as": tuple((f"{name}, {100 * part:.0f} %", Setting(merged=part)) for name, part in MERGES.items()),
    "loads counted by": (("bytes", Setting()), ("bytes, tensors", Setting(tensors=True))),
}


def outcomes(runs: Runs, change: Change, setting: Setting, memory: str) -> Iterator[tuple[str, Outcome, Outcome]]:
    """Yield for each workload its name and the results of the new and of the old side of a comparison."""
    for workload in runs.workloads:
        new, old = (
            runs[Cell(workload, memory, policy, setting if merged else replace(setting, merged=0.0))]
            for policy, merged in change
        )
        yield workload, new, old


def changes(
    runs: Runs, change: Change, setting: Setting, memories: Iterable[str], value: Callable[[Outcome], float]
) -> list[tuple[float, tuple[str, str]]]:
    """Return the relative change of a figure from the old to the new side of a comparison.

    One per workload and memory setting, with these two; none where the old figure is 0.
    """
    return [
        (value(new) / value(old) - 1, (workload, memory))
        for memory in memories
        for workload, new, old in outcomes(runs, change, setting, memory)
        if value(old) > 0
    ]


def swept_changes(
    runs: Runs, change: Change, setting: Setting, value: Callable[[Outcome], float]
) -> list[tuple[float, tuple[str, str]]]:
    """Return the relative changes of a figure at one point of a sweep; see :func:`changes`."""
    few = {name: queries for name, queries in runs.workloads.items() if len(queries) <= _SWEPT_QUERIES}
    return changes(replace(runs, workloads=few), change, setting, _SWEPT, value)


def composition(queries: Sequence[Query]) -> str:
    """Return the architectures of a workload's models as text, such as ``2 vgg16, resnet50``."""
    counts = Counter(query.architecture for query in queries).most_common()
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts)

"""Make the table of docs/paper.md of figures that the simulator must reach, and of the points that fall short."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from paper_changes import CHANGES, MEASURES, SAME, SHORT, Sweeps, changes, composition, swept_changes
from paper_merge import Setting
from paper_runs import Runs, memory_bytes
from paper_tables import signed, table

__all__ = ["required"]

_LOWEST = 5
"""Number of points below a required figure that are named."""
_EQUAL = 2.5e-3
"""Relative change below which two figures are equal: one frame of a query at the ends of a run of 900 frames."""


def required(runs: Runs, large: tuple[int, float, float], swept: Sweeps) -> str:
    """Return a Markdown table of figures that the simulator must reach, and the points that are below.

    Args:
        runs: simulated runs.
        large: large run that was timed: number of queries, simulated seconds, and seconds of planning and simulating.
        swept: sweeps in whose points merged workloads on ``gemel`` are compared with the baseline.
    """
    rows: list[list[str]] = []
    below: list[str] = []
    tight: list[str] = []
    for what, value in MEASURES.items():
        for models, (change, setting) in SAME.items():
            found = changes(runs, change, setting, SHORT, value)
            middle = median(each for each, _ in found)
            if what == "slowest query":
                rows.append([f"{what}, median", models, "+25 %", signed(middle), _reached(middle >= 0.25)])
                swapped = [each for each, place in found if _swaps(runs, setting, *place)]
                if swapped:
                    tight.append(f"{models}: {len(swapped)} of {len(found)}, {signed(median(swapped))}")
            points = [(each, f"{name} at {memory}") for each, (name, memory) in found]
            rows.append(_never_below(what, models, points, below))
    sweep = {setting: f"{name} {title}" for name, settings in swept.items() for title, setting in settings}
    for what, value in MEASURES.items():
        points = [
            (each, f"{name} at {memory}, {title}")
            for setting, title in sweep.items()
            for each, (name, memory) in swept_changes(runs, CHANGES["both"], setting, value)
        ]
        rows.append(_never_below(what, "both, against nexus unmerged, all sweeps at 50 %", points, below))
    count, seconds, took = large
    title = f"{count} models, 20 feeds, {seconds / 60:g} simulated minutes"
    rows.append([title, "", "30 s at most", f"{took:.1f} s", _reached(took <= 30)])
    lines = [table(["figure", "models", "required", "measured", ""], rows, 2)]
    lines.append(
        f"\nPoints at which not all weights fit, and the median of the slowest query there: {'; '.join(tight)}."
    )
    if below:
        used = {name: queries for name, queries in runs.workloads.items() if any(name in line for line in below)}
        models = "; ".join(f"{name}: {composition(queries)}" for name, queries in used.items())
        lines += ["\nPoints below, the lowest first:\n", *(f"- {line}" for line in below), f"\nModels of {models}."]
    return "\n".join(lines)


def _swaps(runs: Runs, setting: Setting, workload: str, memory: str) -> bool:
    """Return whether a workload's weights do not all fit in a memory setting."""
    budget = memory_bytes(runs.profile(workload, replace(setting, merged=0.0)), memory)
    return runs.profile(workload, setting).budget("all") > budget


def _never_below(what: str, models: str, points: list[tuple[float, str]], below: list[str]) -> list[str]:
    """Return the row of a figure that must never fall; add a line to ``below`` on the points where it does."""
    fallen = sorted(each for each in points if each[0] < -_EQUAL)
    if fallen:
        named = ", ".join(f"{where} {100 * change:+.1f} %" for change, where in fallen[:_LOWEST])
        below.append(f"{what}, {models}: {named}")
    measured = f"{len(fallen)} of {len(points)} below, lowest {100 * min(points)[0]:+.1f} %"
    return [f"{what}, lowest", models, "+0 %", measured, _reached(not fallen)]


def _reached(yes: bool) -> str:
    return "reached" if yes else "**not reached**"

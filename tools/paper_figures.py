"""Draw the pictures of docs/paper.md from simulated runs."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from paper_changes import BARS, CHANGES, MEASURES, PARTS, SHORT, Sweeps, swept_changes
from paper_runs import Cell, Runs

__all__ = ["draw_frames", "draw_sweeps"]

# A fixed salt makes equal drawings equal files.
plt.rcParams["svg.hashsalt"] = "gemel"
_COLORS = ("0.65", "C0", "C1", "C2")


def draw_frames(runs: Runs, path: Path) -> None:
    """Draw the percentage of frames that each workload, and its slowest query, processes; a panel per memory setting.

    A bar is for all frames of a workload, the mark in it for the query with the smallest part.
    """
    figure, panels = plt.subplots(len(SHORT), 1, figsize=(11, 8), sharex=True, sharey=True)
    names = list(runs.workloads)
    for panel, memory in zip(panels, SHORT, strict=True):
        for index, (label, (policy, setting)) in enumerate(BARS.items()):
            found = runs.all(Cell(name, memory, policy, setting) for name in names)
            places = [place + 0.2 * (index - 1.5) for place in range(len(names))]
            panel.bar(places, [100 * each.processed for each in found], 0.19, color=_COLORS[index], label=label)
            panel.plot(places, [100 * each.lowest for each in found], "_", color="k", ms=7)
        panel.set_ylabel(f"frames processed, %\nmemory: {memory}")
        panel.set_ylim(0, 100)
        panel.grid(axis="y", alpha=0.3)
        panel.set_axisbelow(True)
    panels[0].plot([], [], "_", color="k", ms=7, label="slowest query")
    panels[0].legend(ncols=5, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    panels[-1].set_xticks(range(len(names)), names, rotation=30, ha="right")
    figure.tight_layout()
    _save(figure, path)


def draw_sweeps(runs: Runs, path: Path, swept: Sweeps) -> None:
    """Draw the median change in frames, and in the slowest query's, over the frame rate, the SLA and the merge."""
    shown = list(swept.items())[:3]
    figure, panels = plt.subplots(1, len(shown), figsize=(12, 4), sharey=True)
    for panel, (sweep, settings) in zip(panels, shown, strict=True):
        for index, title in enumerate(PARTS):
            for (what, value), style in zip(MEASURES.items(), ("--", "-"), strict=True):
                middle = [
                    100 * median(change for change, _ in swept_changes(runs, CHANGES[title], setting, value))
                    for _, setting in settings
                ]
                label = f"{title}, {what}"
                panel.plot(range(len(settings)), middle, style, color=_COLORS[1 + index], marker="o", ms=4, label=label)
        panel.set_xticks(range(len(settings)), [name.replace(", ", "\n") for name, _ in settings])
        panel.set_xlabel(sweep)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("change to nexus unmerged,\n%, median of all workloads")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, ncols=3, fontsize=9, loc="upper center", frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.88))
    _save(figure, path)


def _save(figure: matplotlib.figure.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)

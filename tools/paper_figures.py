"""Draw the pictures of docs/paper.md from simulated runs."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from paper_runs import Cell, Runs
from paper_tables import BOTH, MERGED, MERGING, SHORT, SWEEPS, UNMERGED, gains

__all__ = ["draw_frames", "draw_sweeps"]

# A fixed salt makes equal drawings equal files.
plt.rcParams["svg.hashsalt"] = "gemel"
_BARS = {
    "nexus, unmerged": ("nexus", UNMERGED, "0.65"),
    "nexus+shared, merged": ("nexus+shared", MERGED, "C0"),
    "gemel, unmerged": ("gemel", UNMERGED, "C1"),
    "gemel, merged": ("gemel", MERGED, "C2"),
}


def draw_frames(runs: Runs, path: Path) -> None:
    """Draw the percentage of frames that each workload processes, one panel per memory setting."""
    figure, panels = plt.subplots(len(SHORT), 1, figsize=(11, 8), sharex=True, sharey=True)
    names = list(runs.workloads)
    for panel, memory in zip(panels, SHORT, strict=True):
        for index, (label, (policy, setting, color)) in enumerate(_BARS.items()):
            parts = [100 * runs[Cell(name, memory, policy, setting)].processed for name in names]
            places = [place + 0.2 * (index - 1.5) for place in range(len(names))]
            panel.bar(places, parts, 0.19, color=color, label=label)
        panel.set_ylabel(f"frames processed, %\nmemory: {memory}")
        panel.set_ylim(0, 100)
        panel.grid(axis="y", alpha=0.3)
        panel.set_axisbelow(True)
    panels[0].legend(ncols=4, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    panels[-1].set_xticks(range(len(names)), names, rotation=30, ha="right")
    figure.tight_layout()
    _save(figure, path)


def draw_sweeps(runs: Runs, path: Path) -> None:
    """Draw the change in frames processed over the frame rate, the SLA, and the fraction of the potential merged."""
    shown = list(SWEEPS.items())[:3]
    figure, panels = plt.subplots(1, len(shown), figsize=(12, 4), sharey=True)
    for panel, (title, settings) in zip(panels, shown, strict=True):
        for index, memory in enumerate(SHORT):
            for pair, style, what in ((BOTH, "-", "and swap planning"), (MERGING, "--", "alone")):
                middle = [100 * median(gains(runs, pair, setting, [memory])) for _, setting in settings]
                label = f"{memory}, merging {what}"
                panel.plot(range(len(settings)), middle, style, color=f"C{index}", marker="o", ms=4, label=label)
        panel.set_xticks(range(len(settings)), [name for name, _ in settings])
        panel.set_xlabel(title)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("frames processed, change to\nnexus unmerged, %, median")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, ncols=3, fontsize=9, loc="upper center", frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.88))
    _save(figure, path)


def _save(figure: matplotlib.figure.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)

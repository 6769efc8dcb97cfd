"""Timeline of the drill: what happened when, how good each query's answers were meanwhile, and a picture of both.

Times are seconds since the drill began. All functions here are pure, but for the drawing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

__all__ = ["Answer", "Happening", "Timeline", "draw", "missed", "windows"]

_WINDOW_S = 10.0
"""Seconds of answers of which one accuracy is shown."""
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Colours of queries, which colour-blind people can tell apart (Okabe and Ito)."""
_LANES = ("merger", "box", "drift")
_SHADES = {"merging": "#9ecae1", "reload": "#fdae6b", "holds": "#c7e9c0", "watch": "#fee391", "revert": "#fb6a4a"}
_MARKS = {"published": "^", "applied": "v", "reverted": "X"}
"""Kind of a happening that is drawn as a mark in its lane -> the mark."""


@dataclass(frozen=True)
class Happening:
    """One thing that happened."""

    kind: str
    """Kind: ``merging``, ``published``, ``applied``, ``bundle``, ``reload``, ``scene``, ``verdict``, ``reverted``,
    ``back`` or ``private``."""
    begin: float
    end: float | None = None
    """End of something that takes time."""
    text: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Figures, such as ``bytes``."""


@dataclass(frozen=True)
class Answer:
    """Answer of a query to one frame."""

    at: float
    frame: int
    agrees: bool
    """Whether the original model gives the same."""
    right: bool
    """Whether it is the true label."""


@dataclass
class Timeline:
    """What happened in a drill, and all answers."""

    feeds: dict[str, str]
    """Query -> its feed."""
    targets: dict[str, float]
    """Query -> accuracy target relative to the original model."""
    happenings: list[Happening] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    originals: dict[str, dict[str, float]] = field(default_factory=dict)
    """Query -> scene -> part of the frames to which the original model gives the true label."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Name -> other figure."""

    def of(self, kind: str) -> list[Happening]:
        """Return what happened of one kind, in the order of time."""
        return sorted((each for each in self.happenings if each.kind == kind), key=lambda each: each.begin)

    def write(self, path: Path) -> None:
        """Write everything to a JSON file."""
        rows = {query: [[a.at, a.frame, a.agrees, a.right] for a in found] for query, found in self.answers.items()}
        path.write_text(json.dumps({**asdict(self), "answers": rows}) + "\n")

    @staticmethod
    def read(path: Path) -> Timeline:
        """Read what :meth:`write` has written."""
        content = json.loads(path.read_text())
        content["happenings"] = [Happening(**each) for each in content["happenings"]]
        content["answers"] = {query: [Answer(*row) for row in rows] for query, rows in content["answers"].items()}
        return Timeline(**content)


def windows(answers: Sequence[Answer], seconds: float = _WINDOW_S) -> list[tuple[float, float, int]]:
    """Return the middle of each window of time, the part of its answers that is as the original's, and their number."""
    found: dict[int, list[bool]] = {}
    for answer in answers:
        found.setdefault(int(answer.at // seconds), []).append(answer.agrees)
    return [((key + 0.5) * seconds, sum(each) / len(each), len(each)) for key, each in sorted(found.items())]


def missed(answers: Sequence[Answer]) -> list[float]:
    """Return when frames came to which a query gave no answer: those whose numbers are missing between its answers."""
    found: list[float] = []
    ordered = sorted(answers, key=lambda each: each.frame)
    for one, other in pairwise(ordered):
        count = other.frame - one.frame
        found += [one.at + (other.at - one.at) * step / count for step in range(1, count)]
    return found


def draw(timeline: Timeline, path: Path) -> None:
    """Draw a timeline as a picture; the end of the file's name says in which format."""
    minutes = [each.at / 60 for answers in timeline.answers.values() for each in answers]
    figure, (accuracy, weights, frames, lanes) = plt.subplots(
        4, 1, figsize=(11, 9), sharex=True, height_ratios=(3.2, 1.6, 1.3, 1.5), layout="constrained"
    )
    colors = dict(zip(timeline.feeds, _COLORS, strict=False))
    _draw_accuracy(accuracy, timeline, colors)
    _draw_bytes(weights, timeline)
    _draw_missed(frames, timeline, colors)
    _draw_lanes(lanes, timeline)
    last = max((each.end or each.begin for each in timeline.happenings), default=0.0) / 60
    for panel in (accuracy, weights, frames, lanes):
        panel.set_xlim(0, max([last, *minutes]) * 1.01)
        panel.spines[["top", "right"]].set_visible(False)
        for scene in timeline.of("scene"):
            panel.axvspan(scene.begin / 60, panel.get_xlim()[1], color="#54278f", alpha=0.08, zorder=0)
        for reload in timeline.of("reload"):
            panel.axvline(reload.begin / 60, color="0.75", linewidth=0.8, linestyle=":", zorder=0)
    lanes.set_xlabel("minutes")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_accuracy(panel: Axes, timeline: Timeline, colors: Mapping[str, str]) -> None:
    """Draw the accuracy of each query over time, its target, and what made it change."""
    for query, answers in timeline.answers.items():
        rows = windows(answers)
        label = f"{query} (camera {timeline.feeds[query]})"
        panel.plot([row[0] / 60 for row in rows], [100 * row[1] for row in rows], color=colors[query], label=label)
    for target in sorted(set(timeline.targets.values())):
        panel.axhline(100 * target, color="black", linestyle="--", linewidth=1)
        panel.text(0.02, 100 * target, f" target {target:.0%}", va="bottom", fontsize=8)
    low = min((100 * row[1] for answers in timeline.answers.values() for row in windows(answers)), default=0.0)
    panel.set_ylim(max(0.0, low - 8), 109)
    panel.set_yticks([tick for tick in range(0, 101, 10) if tick >= low - 8])
    for kind, what in (
        ("scene", "night at {}"),
        ("reverted", "{} reverted"),
        ("back", "{} back"),
        ("private", "{} private"),
    ):
        for each in timeline.of(kind):
            panel.annotate(
                what.format(each.text),
                (each.begin / 60, 101),
                (0, 14 if kind == "scene" else 3),
                textcoords="offset points",
                fontsize=9,
                fontweight="bold",
                ha="left" if kind == "reverted" else "right",
            )
            panel.axvline(each.begin / 60, 0, 0.93, color="black", linewidth=1)
    panel.set_ylabel(f"answers as the original's, %\n({_WINDOW_S:.0f} s each)")
    panel.legend(loc="lower left", fontsize=8, framealpha=0.9)


def _draw_bytes(panel: Axes, timeline: Timeline) -> None:
    """Draw the weights that the box runs with, and the bytes that were sent."""
    steps = timeline.of("bundle")
    if steps:
        end = max(each.end or each.begin for each in timeline.happenings)
        times = [each.begin / 60 for each in steps] + [end / 60]
        sizes = [each.more["weights"] / 1e6 for each in steps]
        panel.step(times, [*sizes, sizes[-1]], where="post", color="black", label="weights that run on the box")
    sent = timeline.of("applied")
    sizes = [each.more["bytes"] / 1e6 for each in sent]
    panel.bar([each.begin / 60 for each in sent], sizes, 0.06, color="#e7298a", label="delta sent to the box")
    for each, size in zip(sent, sizes, strict=True):
        panel.annotate(
            f"{size:.2f}", (each.begin / 60, size), (0, 2), textcoords="offset points", fontsize=8, ha="center"
        )
    panel.set_ylim(0)
    panel.set_ylabel("MB")
    panel.legend(loc="upper right", fontsize=8, framealpha=0.9)


def _draw_missed(panel: Axes, timeline: Timeline, colors: Mapping[str, str]) -> None:
    """Draw how many frames each query has missed up to each moment."""
    most = 0
    for query, answers in timeline.answers.items():
        times = sorted(missed(answers))
        most = max(most, len(times))
        begin, end = (min(a.at for a in answers), max(a.at for a in answers)) if answers else (0.0, 0.0)
        panel.step(
            [begin / 60, *(at / 60 for at in times), end / 60],
            [0, *range(1, len(times) + 1), len(times)],
            where="post",
            color=colors[query],
        )
    total = max((len(answers) for answers in timeline.answers.values()), default=0)
    panel.text(0.01, 0.88, f"of {total:,} frames of a camera", transform=panel.transAxes, fontsize=8, va="top")
    panel.set_ylim(-0.05 * max(most, 1), max(1.15 * most, 1))
    panel.set_ylabel("frames missed,\nsum")


def _draw_lanes(panel: Axes, timeline: Timeline) -> None:
    """Draw what the merger, the box and the judge of drift did."""
    lane = {"merging": 0, "reload": 1, "verdict": 2, "published": 0, "applied": 1, "reverted": 2}
    shown = set[str]()
    for each in timeline.happenings:
        if each.kind not in lane:
            continue
        shade = each.more["verdict"] if each.kind == "verdict" else each.kind
        name = f"verdict {shade}" if each.kind == "verdict" else each.kind
        # One entry of the legend for all of a kind.
        label, row, begin = "_" if name in shown else name, lane[each.kind], each.begin / 60
        shown.add(name)
        if each.kind in _MARKS:
            panel.plot(begin, row, _MARKS[each.kind], color="black", label=label, zorder=2)
        elif each.end is not None and shade in _SHADES:
            length = max(each.end - each.begin, 1.0) / 60
            panel.barh(row, length, 0.6, left=begin, color=_SHADES[shade], label=label, zorder=1)
    panel.set_yticks(range(len(_LANES)), _LANES)
    panel.set_ylim(len(_LANES) - 0.5, -0.5)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=9, fontsize=8, frameon=False)

"""Make the Markdown tables of docs/paper.md from simulated runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import median

from paper_merge import BATCHES, Setting, potential
from paper_models import SLIDES, Architecture, Fit
from paper_published import published
from paper_runs import HALF_LIVES, MEMORY, Cell, Outcome, Runs, memory_bytes

__all__ = ["BOTH", "FULL", "MERGED", "MERGING", "SHORT", "SWEEPS", "UNMERGED", "Pair", "gains", "slide", "times"]
__all__ += ["claims", "classes", "each_workload", "percent", "required", "sweeps"]

UNMERGED, MERGED, FULL = Setting(merged=0.0), Setting(), Setting(merged=1.0)
SHORT = ("min", "50 %", "75 %")
"""Memory settings that are too small for all weights, so that models swap."""

Pair = tuple[tuple[str, bool], tuple[str, bool]]
"""Two sides of a comparison of simulated runs, the new side first: (policy, whether the workload is merged)."""
MERGING: Pair = ("nexus+shared", True), ("nexus", False)
BOTH: Pair = ("gemel", True), ("nexus", False)
SUM: Pair = ("gemel, sum", True), ("nexus", False)
_PAIRS = {
    "merging alone": MERGING,
    "and swap planning": BOTH,
    "and swap planning for the sum": SUM,
    "gemel, merged and not": (("gemel", True), ("gemel", False)),
}

SWEEPS: Mapping[str, tuple[tuple[str, Setting], ...]] = {
    "frames a second": tuple((f"{fps:g}", Setting(fps=fps)) for fps in (5.0, 10.0, 15.0, 30.0)),
    "SLA, ms": tuple((f"{sla:g}", Setting(sla_ms=sla)) for sla in (50.0, 100.0, 200.0, 400.0)),
    "part merged": tuple((f"{100 * part:.0f} %", Setting(merged=part)) for part in (0.25, 0.5, 0.7, 1.0)),
    "loads counted by": (("bytes", Setting()), ("bytes, tensors", Setting(tensors=True))),
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Return a Markdown table; the first ``words`` columns are text, the others are numbers."""
    lines = [head, ["---"] * words + ["--:"] * (len(head) - words), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(part: float) -> str:
    """Return a fraction as text, such as ``12.3 %``."""
    return f"{part:.1%}".replace("%", " %")


def signed(change: float) -> str:
    """Return a relative change as text, such as ``+12 %``."""
    # Adding 0 turns -0.0 into 0.0, which is printed as +0.
    return f"{round(100 * change) + 0:+d} %"


def spread(values: Iterable[float], show: Callable[[float], str] = signed) -> str:
    """Return the spread of some values as text: ``least to most (median)``."""
    known = sorted(values)
    return f"{show(known[0])} to {show(known[-1])} ({show(median(known))})"


def outcomes(runs: Runs, pair: Pair, setting: Setting, memory: str) -> Iterator[tuple[str, Outcome, Outcome]]:
    """Yield for each workload its name and the results of the new and of the old side of a comparison."""
    for workload in runs.workloads:
        new, old = (
            runs[Cell(workload, memory, policy, setting if merged else replace(setting, merged=0.0))]
            for policy, merged in pair
        )
        yield workload, new, old


def gains(
    runs: Runs,
    pair: Pair,
    setting: Setting,
    memories: Iterable[str],
    value: Callable[[Outcome], float] = lambda outcome: outcome.processed,
) -> list[float]:
    """Return the relative change of a figure from the old to the new side of a comparison.

    One number per workload and memory setting.
    """
    both = (each for memory in memories for each in outcomes(runs, pair, setting, memory))
    return [value(new) / value(old) - 1 for _, new, old in both if value(old) > 0]


def times(known: Mapping[str, Architecture], fit: Fit) -> str:
    """Return a Markdown table of architectures: sizes, and load and run times from the slides and from the fit."""
    rows = []
    for name, each in known.items():
        load, run = fit.estimated(each)
        told = [f"{value:g}" for value in SLIDES[name]] if name in SLIDES else ["", ""]
        sizes = [f"{each.bytes / 1e6:.1f}", str(each.tensors), str(len(each.layers)), f"{each.gmacs:.1f}"]
        rows.append([name, *sizes, told[0], f"{load:.1f}", told[1], f"{run:.1f}"])
    head = ["model", "MB", "tensors", "layers", "G multiplications", "load, slides", "load, fit", "run, slides"]
    return (
        f"A load takes {fit.ms_per_mb:.3f} ms a MB and {fit.ms_per_tensor:.3f} ms a tensor, a run"
        f" {fit.ms_per_layer:.3f} ms a layer and {fit.ms_per_gmac:.3f} ms for a thousand million multiplications.\n\n"
        + table([*head, "run, fit"], rows)
    )


def slide(runs: Runs) -> str:
    """Return a Markdown table of the slides' five models under the published scheduler and gemel's policies."""
    rows = []
    for (name, batches), memory in product((("1", (1,)), ("1, 2, 4", BATCHES)), MEMORY):
        setting = replace(FULL, batches=batches)
        unmerged = replace(setting, merged=0.0)
        profile = runs.profile("low-1", unmerged)
        budget = memory_bytes(profile, memory)
        rules = published(profile, budget, int(runs.seconds * setting.fps))
        ours = [("nexus", unmerged), ("nexus+shared", setting), ("gemel", unmerged), ("gemel", setting)]
        rows.append(
            [
                *(name, memory, f"{budget / 1e6:.0f}", percent(rules.processed), percent(rules.timely)),
                f"{rules.peak / 1e6:.0f}",
                *(percent(runs[Cell("low-1", memory, policy, each)].processed) for policy, each in ours),
            ]
        )
    head = ["batches", "memory", "MB", "published rules", "of it in time", "MB they hold"]
    return table([*head, "nexus", "nexus+shared, merged", "gemel, unmerged", "gemel, merged"], rows, 2)


def claims(runs: Runs) -> str:
    """Return a Markdown table of the figures in the paper's slides and the simulator's figures."""
    pairs, none = list(_PAIRS.values()), [""] * (len(_PAIRS) - 1)
    saved = [_saved(runs, name, MERGED) for name in runs.workloads]
    most = [potential(queries, runs.known) for queries in runs.workloads.values()]
    rows = [
        ["potential, of memory", "17 % to 86 %", spread(most, _whole), *none],
        ["memory, 70 % merged", "-18 % to -61 %", spread(-part for part, _ in saved), *none],
        [
            "saved, 70 % merged",
            "150 to 5120 MB",
            f"{min(size for _, size in saved) / 1e6:.0f} to {max(size for _, size in saved) / 1e6:.0f} MB",
            *none,
        ],
    ]
    for title, told, setting in (("70 %", "+13 % to +44 %", MERGED), ("all", "+29 % to +61 %", FULL)):
        rows.append([f"frames, {title} merged", told, *(spread(gains(runs, pair, setting, SHORT)) for pair in pairs)])
    rows.append(["the same in points", "", *(_points(runs, pair) for pair in pairs)])
    for title, told, value in _MORE:
        rows.append([title, told, *(spread(gains(runs, pair, MERGED, SHORT, value)) for pair in pairs)])
    for index, life in enumerate(HALF_LIVES):
        found = (spread(gains(runs, pair, MERGED, SHORT, _accuracy(index))) for pair in pairs)
        rows.append([f"accuracy, half-life {life} ms", "+2 % to +60 %", *found])
    skipped = [1 - old.processed for memory in SHORT for _, _, old in outcomes(runs, BOTH, MERGED, memory)]
    rows.append(["skipped by nexus, unmerged", "19 % to 84 %", spread(skipped, _whole), *none])
    return table(["", "the slides", *_PAIRS], rows)


_MORE: tuple[tuple[str, str, Callable[[Outcome], float]], ...] = (
    ("time blocked", "-17 % to -84 %", lambda it: it.blocked),
    ("frames of the query with fewest", "", lambda it: it.lowest),
    ("mean age of answers", "", lambda it: it.age_ms),
)


def _whole(part: float) -> str:
    return f"{100 * part:.0f} %"


def _accuracy(index: int) -> Callable[[Outcome], float]:
    return lambda outcome: outcome.accuracy[index]


def _points(runs: Runs, pair: Pair) -> str:
    both = (each for memory in SHORT for each in outcomes(runs, pair, MERGED, memory))
    return spread((new.processed - old.processed for _, new, old in both), lambda points: f"{100 * points:+.0f}")


def _saved(runs: Runs, name: str, setting: Setting) -> tuple[float, int]:
    before, after = (runs.profile(name, each).budget("all") for each in (UNMERGED, setting))
    return 1 - after / before, before - after


def classes(runs: Runs) -> str:
    """Return a Markdown table of frames processed: medians over the workloads with low, medium and high potential."""
    columns = [("nexus", UNMERGED), ("nexus+shared", MERGED), ("lru", MERGED)]
    columns += [("gemel", UNMERGED), ("gemel, sum", MERGED), ("gemel", MERGED)]
    rows = []
    for kind, memory in product(dict.fromkeys(name.partition("-")[0] for name in runs.workloads), MEMORY):
        names = [name for name in runs.workloads if name.startswith(kind)]
        found = [runs.all(Cell(name, memory, policy, each) for name in names) for policy, each in columns]
        processed = [percent(median(each.processed for each in column)) for column in found]
        blocked = [percent(median(each.blocked for each in found[place])) for place in (0, 1, -1)]
        rows.append([kind, memory, *processed, *blocked])
    head = ["potential", "memory", "nexus, unmerged", "nexus+shared", "lru", "gemel, unmerged", "gemel, sum", "gemel"]
    return table([*head, "blocked: nexus, unmerged", "nexus+shared", "gemel"], rows, 2)


def each_workload(runs: Runs) -> str:
    """Return a Markdown table of every workload's savings and frames processed in the memory setting "50 %"."""
    columns = [("nexus", UNMERGED), ("nexus+shared", MERGED), ("gemel", UNMERGED), ("gemel", MERGED)]
    rows = []
    for name, queries in runs.workloads.items():
        part, size = _saved(runs, name, MERGED)
        total = runs.profile(name, UNMERGED).budget("all")
        found = runs.all(Cell(name, "50 %", policy, each) for policy, each in columns)
        sizes = [f"{total / 1e6:.0f}", percent(potential(queries, runs.known)), percent(part), f"{size / 1e6:.0f}"]
        rows.append([name, str(len(queries)), *sizes, *(percent(each.processed) for each in found)])
    head = ["workload", "queries", "MB", "potential", "saved", "MB saved", "nexus, unmerged", "nexus+shared"]
    return table([*head, "gemel, unmerged", "gemel"], rows)


def sweeps(runs: Runs) -> str:
    """Return a Markdown table of the sweeps: median change in frames processed, over all workloads."""
    rows = []
    for sweep, settings in SWEEPS.items():
        for title, setting in settings:
            found = (median(gains(runs, pair, setting, [memory])) for pair in (MERGING, BOTH) for memory in SHORT)
            rows.append([sweep, title, *map(signed, found)])
    head = [f"{title}, {memory}" for title in ("merging alone", "with swap planning") for memory in SHORT]
    return table(["", "", *head], rows, 2)


def required(runs: Runs, large: tuple[int, float, float]) -> str:
    """Return a Markdown table of figures that the simulator must reach, and whether it reaches them.

    Args:
        runs: simulated runs.
        large: large run that was timed: number of queries, simulated seconds, and seconds of planning and simulating.
    """
    rows = []
    for memory in SHORT:
        best = max(gains(runs, BOTH, MERGED, [memory]))
        rows.append([f"frames at {memory}, best workload", "+44 %", signed(best), _reached(best >= 0.44)])
    # A dict, because all sweeps contain the default setting.
    points = {setting: f"{sweep} {title}" for sweep, settings in SWEEPS.items() for title, setting in settings}
    cells = [
        (f"{name}, {memory}, {point}", new.processed / old.processed - 1)
        for setting, point in points.items()
        for memory in SHORT
        for name, new, old in outcomes(runs, BOTH, setting, memory)
    ]
    below = sorted((gain, name) for name, gain in cells if gain < 0)
    least = min(gain for _, gain in cells)
    rows.append([f"frames, worst of {len(cells)} points", "+0 %", f"{100 * least:+.2f} %", _reached(not below)])
    blocked = min(gains(runs, BOTH, MERGED, SHORT, lambda it: it.blocked))
    rows.append(["time blocked, best point", "-84 %", signed(blocked), _reached(blocked <= -0.84)])
    count, seconds, took = large
    title = f"{count} models, 20 feeds, {seconds / 60:g} simulated minutes"
    rows.append([title, "30 s at most", f"{took:.1f} s", _reached(took <= 30)])
    lines = [table(["figure", "required", "measured", ""], rows)]
    if below:
        worst = "; ".join(f"{name}: {100 * gain:+.2f} %" for gain, name in below[:5])
        lines.append(f"\n{len(below)} of {len(cells)} points are below the baseline, the lowest: {worst}.")
    return "\n".join(lines)


def _reached(yes: bool) -> str:
    return "reached" if yes else "**not reached**"

"""Make the Markdown tables of docs/paper.md from simulated runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import median

from paper_changes import (
    BARS,
    CHANGES,
    MEASURES,
    PARTS,
    SHORT,
    SIBLINGS,
    STRANGERS,
    SUM,
    UNMERGED,
    Change,
    Sweeps,
    changes,
    composition,
    outcomes,
    swept_changes,
)
from paper_merge import BATCHES, Setting, potential
from paper_models import SLIDES, Architecture, Fit
from paper_published import published
from paper_runs import HALF_LIVES, MEMORY, Cell, Outcome, Runs, memory_bytes

__all__ = ["claims", "classes", "each_workload", "medians", "percent", "signed", "slide", "sweeps", "table", "times"]


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
    """Return the spread of some values as text: ``median (least to most)``."""
    known = sorted(values)
    return f"{show(median(known))} ({show(known[0])} to {show(known[-1])})"


def medians(runs: Runs) -> str:
    """Return Markdown tables of the changes in frames and in the slowest query's, and of the points at their ends."""
    rows, ends = [], []
    for title, change in CHANGES.items():
        cells = []
        for (what, value), setting in product(MEASURES.items(), (SIBLINGS, STRANGERS)):
            if setting is STRANGERS and not change.merges:
                cells.append("")
                continue
            found = changes(runs, change, setting, SHORT, value)
            cells.append(spread(each for each, _ in found))
            if setting is SIBLINGS:
                (least, where), (most, there) = min(found), max(found)
                ends.append([title, what, signed(least), _named(runs, where), signed(most), _named(runs, there)])
        rows.append([title, *cells])
    head = [f"{what}, {merge}" for what in MEASURES for merge in ("siblings", "strangers")]
    first = table(["", *head], rows)
    return f"{first}\n\n{table(['', 'of', 'lowest', 'where', 'highest', 'there'], ends, 2)}"


def _named(runs: Runs, where: tuple[str, str]) -> str:
    workload, memory = where
    return f"{workload} at {memory} ({composition(runs.workloads[workload])})"


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
        setting = replace(SIBLINGS, batches=batches)
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
    return table([*head, *BARS], rows, 2)


def claims(runs: Runs) -> str:
    """Return a Markdown table of the figures in the paper's slides and the simulator's figures."""
    merges = {"siblings": SIBLINGS, "strangers": STRANGERS}
    columns: dict[str, tuple[Change, Setting]] = {
        f"{title}, {merge}": (CHANGES[title], setting)
        for title, (merge, setting) in product(("merging alone", "both"), merges.items())
    }
    none = [""] * (len(columns) - 2)
    saved = [[_saved(runs, name, setting) for name in runs.workloads] for setting in merges.values()]
    most = [potential(queries, runs.known) for queries in runs.workloads.values()]
    rows = [
        ["potential, of memory", "17 % to 86 %", spread(most, _whole), "", *none],
        ["memory", "-18 % to -61 %", *(spread(-part for part, _ in each) for each in saved), *none],
        ["MB saved", "150 to 5120", *(spread((size / 1e6 for _, size in each), _number) for each in saved), *none],
    ]
    for title, told, value in _CLAIMS:
        found = (changes(runs, change, setting, SHORT, value) for change, setting in columns.values())
        rows.append([title, told, *(spread(each for each, _ in every) for every in found)])
        if title == "frames":
            rows.append(["the same in points", "", *(_points(runs, *each) for each in columns.values())])
    skipped = [1 - old.processed for memory in SHORT for _, _, old in outcomes(runs, CHANGES["both"], SIBLINGS, memory)]
    rows.append(["skipped by nexus, unmerged", "19 % to 84 %", spread(skipped, _whole), "", *none])
    return table(["", "the slides", *columns], rows)


def _accuracy(index: int) -> Callable[[Outcome], float]:
    return lambda outcome: outcome.accuracy[index]


_CLAIMS: tuple[tuple[str, str, Callable[[Outcome], float]], ...] = (
    ("frames", "+13 % to +44 %", lambda it: it.processed),
    ("time blocked", "-17 % to -84 %", lambda it: it.blocked),
    ("mean age of answers", "", lambda it: it.age_ms),
    *((f"accuracy, half-life {life} ms", "+2 % to +60 %", _accuracy(index)) for index, life in enumerate(HALF_LIVES)),
)
"""Title of a row, the slides' figure, and the figure of a simulated run."""


def _whole(part: float) -> str:
    return f"{100 * part:.0f} %"


def _number(value: float) -> str:
    return f"{value:.0f}"


def _points(runs: Runs, change: Change, setting: Setting) -> str:
    both = (each for memory in SHORT for each in outcomes(runs, change, setting, memory))
    return spread((new.processed - old.processed for _, new, old in both), lambda points: f"{100 * points:+.0f}")


def _saved(runs: Runs, name: str, setting: Setting) -> tuple[float, int]:
    before, after = (runs.profile(name, each).budget("all") for each in (UNMERGED, setting))
    return 1 - after / before, before - after


def _both(outcome: Outcome) -> str:
    return f"{100 * outcome.processed:.1f} / {100 * outcome.lowest:.1f}"


def classes(runs: Runs) -> str:
    """Return a Markdown table of frames processed: medians over the workloads with low, medium and high potential."""
    columns = {**BARS, "gemel, merged, sum": (SUM, SIBLINGS)}
    rows = []
    for kind, memory in product(dict.fromkeys(name.partition("-")[0] for name in runs.workloads), MEMORY):
        names = [name for name in runs.workloads if name.startswith(kind)]
        cells = []
        for policy, setting in columns.values():
            found = runs.all(Cell(name, memory, policy, setting) for name in names)
            cells.append(" / ".join(f"{100 * median(map(value, found)):.1f}" for value in MEASURES.values()))
        rows.append([kind, memory, *cells])
    return table(["potential", "memory", *columns], rows, 2)


def each_workload(runs: Runs) -> str:
    """Return a Markdown table of every workload's models, and its frames processed in the memory setting "50 %"."""
    rows = []
    for name, queries in runs.workloads.items():
        total = runs.profile(name, UNMERGED).budget("all")
        found = runs.all(Cell(name, "50 %", policy, setting) for policy, setting in BARS.values())
        sizes = [f"{total / 1e6:.0f}", percent(potential(queries, runs.known))]
        rows.append([name, composition(queries), *sizes, *map(_both, found)])
    return table(["workload", "models", "MB", "potential", *BARS], rows, 2)


def sweeps(runs: Runs, shown: Sweeps) -> str:
    """Return a Markdown table of the sweeps: median changes over all workloads with half of the memory."""
    rows = []
    for sweep, settings in shown.items():
        for title, setting in settings:
            found = (
                median(change for change, _ in swept_changes(runs, CHANGES[each], setting, value))
                for each in PARTS
                for value in MEASURES.values()
            )
            rows.append([sweep, title, *map(signed, found)])
    return table(["", "", *(f"{title}: {what}" for title in PARTS for what in MEASURES)], rows, 2)

"""Make the tables and pictures of docs/paper.md: the figures of the paper's slides beside the simulator's.

    .venv/bin/python tools/reproduce_paper.py            # some minutes on one core
    .venv/bin/python tools/reproduce_paper.py --quick --output out/paper    # seconds: one workload
    .venv/bin/python tools/reproduce_paper.py --baseline    # a minute: how good the baseline's turn sizes are

Needs no data and no device. docs/paper.md states the assumptions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import perf_counter

import yaml
from documents import put
from paper_baseline import baseline_plan, best_of_all
from paper_changes import SHORT, SIBLINGS, SWEEPS, UNMERGED
from paper_figures import draw_frames, draw_sweeps
from paper_merge import Query, profile_of, read_workloads
from paper_models import ARCHITECTURES, SLIDES, Architecture, Fit, measure
from paper_required import required
from paper_runs import Runs, memory_bytes, worth_of
from paper_tables import claims, classes, each_workload, medians, percent, slide, sweeps, table, times
from rich.console import Console

from gemel.runtime.planning.planner import POLICIES, make_plan
from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.simulate import simulate

_ROOT = Path(__file__).resolve().parent.parent
_QUICK = ("low-1",)
_COMPARED = ("low-1", "medium-1")
"""Workloads of which all turn sizes of the baseline are tried; each has five queries."""
_LARGE = (60, 20)
"""Number of queries and of feeds in the workload whose planning is timed."""


def large_run(known: Mapping[str, Architecture], fit: Fit, seconds: float) -> tuple[int, float, float]:
    """Plan and simulate a large workload of all architectures, and time this.

    Returns:
        Number of queries, simulated seconds, and seconds that planning and simulating took.
    """
    count, feeds = _LARGE
    names = list(known)
    queries = [Query(str(index % feeds), names[index % len(names)], f"task{index}") for index in range(count)]
    budget = memory_bytes(profile_of(queries, known, fit, UNMERGED), "50 %")
    profile = profile_of(queries, known, fit, SIBLINGS)
    began = perf_counter()
    simulate(profile, budget, make_plan(profile, budget, POLICIES["gemel"]), seconds)
    return count, seconds, perf_counter() - began


def compare_baselines(runs: Runs) -> str:
    """Return a Markdown table: the baseline's slowest query by gemel's planner, by hill climbing, and at best."""
    rows = []
    for name, memory in product(_COMPARED, SHORT):
        if name in runs.workloads:
            profile, policy = runs.profile(name, UNMERGED), POLICIES["nexus"]
            budget = memory_bytes(profile, memory)
            worth = worth_of(profile, budget, runs.seconds)
            planned = worth(make_plan(profile, budget, policy))
            climbed = worth(baseline_plan(profile, budget, policy, worth))
            best = best_of_all(profile, budget, policy, worth)
            rows.append([name, memory, *(percent(each[0]) for each in (planned, climbed, best))])
    return table(["workload", "memory", "planned", "climbed", "best of all turn sizes"], rows, 2)


def write_profile(profile: Profile, path: Path) -> None:
    """Write a workload's device profile as a YAML file for ``gemel simulate``."""
    document = profile.model_dump(exclude_defaults=True)
    for model in document["models"].values():
        model["segments"] = list(model["segments"])
    head = (
        "# The models of paper.yaml with all that they can share in one copy, as docs/paper.md has it. A segment is\n"
        "# used by exactly the models that list it. Made by tools/reproduce_paper.py.\n"
        'schema_version: "1"\nmemory: min\n'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=118), "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one workload and short runs, as a test")
    parser.add_argument("--seconds", type=float, help="seconds that each run simulates; default 30, or 3 with --quick")
    parser.add_argument("--output", type=Path, default=_ROOT, help="folder with docs/paper.md and examples/profiles")
    parser.add_argument("--baseline", action="store_true", help="only compare the baseline with all its turn sizes")
    options = parser.parse_args(arguments)
    if options.quick and options.output.resolve() == _ROOT:
        parser.error("--quick needs an --output: the page in docs is made from all workloads")
    console, began = Console(highlight=False), perf_counter()
    workloads = read_workloads(_ROOT / "examples/profiles/paper-workloads.yaml")
    names: Sequence[str] = ARCHITECTURES
    swept = SWEEPS
    if options.quick:
        swept = {name: every[:2] for name, every in SWEEPS.items()}
        workloads = {name: workloads[name] for name in _QUICK}
        used = {query.architecture for queries in workloads.values() for query in queries}
        names = [name for name in ARCHITECTURES if name in used or name in SLIDES]
    known = measure(names)
    fit = Fit.of(known)
    console.print(f"[{perf_counter() - began:4.0f} s] {len(known)} architectures")
    runs = Runs(workloads, known, fit, options.seconds or (3.0 if options.quick else 30.0))
    if options.baseline:
        console.print(compare_baselines(runs), soft_wrap=True, markup=False)
        return
    write_profile(
        runs.profile("low-1", replace(SIBLINGS, batches=(1,))), options.output / "examples/profiles/paper-merged.yaml"
    )
    large = large_run(known, fit, 60.0 if options.quick else 600.0)
    page = options.output / "docs/paper.md"
    makers: dict[str, Callable[[], str]] = {
        "times": lambda: times(known, fit),
        "slide": lambda: slide(runs),
        "medians": lambda: medians(runs),
        "claims": lambda: claims(runs),
        "classes": lambda: classes(runs),
        "workloads": lambda: each_workload(runs),
        "sweeps": lambda: sweeps(runs, swept),
        "required": lambda: required(runs, large, swept),
    }
    blocks: dict[str, str] = {}
    for name, make in makers.items():
        blocks[name] = make()
        console.print(f"[{perf_counter() - began:4.0f} s] {name}, {len(runs.done)} runs so far\n")
        console.print(blocks[name], soft_wrap=True, markup=False)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(put((_ROOT / "docs/paper.md").read_text(encoding="utf-8"), blocks), encoding="utf-8")
    draw_frames(runs, page.parent / "images/paper-frames.svg")
    draw_sweeps(runs, page.parent / "images/paper-sweeps.svg", swept)
    console.print(f"[{perf_counter() - began:4.0f} s] {page}")


if __name__ == "__main__":
    main()

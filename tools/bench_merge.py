"""Merging on real models and images: every strategy on the same budget, and how what they save grows.

    .venv/bin/python tools/bench_merge.py ../shared/data                     # half an hour on two cores
    .venv/bin/python tools/bench_merge.py ../shared/data --full              # three seeds, no budget: many hours

Makes the workloads first (``tools/merge_workloads.py``). Runs are kept below ``out/merge/runs`` and go on where they
were stopped. Each is chosen on one half of the test images and confirmed on the other half. Writes docs/merging.md and
its picture.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
import yaml
from merge_workloads import prepare
from rich.console import Console

from gemel.merging.merge import Listener, Options, merge_workload
from gemel.merging.networks import networks_of
from gemel.merging.strategies import Settings
from gemel.merging.subjects import evaluate
from gemel.merging.tasks import task_of
from gemel.workload import load
from gemel.workload.data import load_data
from gemel.workload.merge_report import MergeReport, read_report

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Arm:
    """One way to merge a workload."""

    name: str
    workload: str
    strategy: str = "together"
    settings: Settings = field(default_factory=Settings)
    target: float = 0.95
    full: bool = False
    """Only with --full."""


_DONE = "confirmed.json"
"""In a run's folder once it is over: what is confirmed on images that the search never saw."""
_GOOD = Settings(rate=0.02)


def _arms() -> Iterator[Arm]:
    yield Arm("together", "w1")
    yield Arm("together, between models", "w1", settings=Settings(inside=False))
    yield Arm("together, between models", "w1", settings=Settings(inside=False), target=0.98)
    yield Arm("heaviest, published rate", "w1", "heaviest")
    yield Arm("heaviest", "w1", "heaviest", _GOOD)
    yield Arm("heaviest, donor start", "w1", "heaviest", replace(_GOOD, start="donor"))
    for name in ("earliest", "latest", "random", "two-group", "one-model"):
        yield Arm(name, "w1", name, _GOOD)
    yield Arm("together", "w2")
    yield Arm("together, between models", "w2", settings=Settings(inside=False))
    yield Arm("together", "w3")
    yield Arm("heaviest", "w3", "heaviest", _GOOD)
    yield Arm("heaviest, published rate", "w2", "heaviest", full=True)
    yield Arm("heaviest", "w2", "heaviest", _GOOD)
    yield Arm("heaviest, donor start", "w2", "heaviest", replace(_GOOD, start="donor"), full=True)
    # Which of the two it is: the default's search from the published start.
    yield Arm("together, published start", "w1", settings=Settings(inside=False, start="first"))


@dataclass
class Run:
    """What became of an arm with one seed."""

    arm: Arm
    seed: int
    report: MergeReport
    confirmed: dict[str, float]
    """Relative accuracy of each query on images that the search never saw."""

    @property
    def samples(self) -> int:
        return sum(trial.samples for trial in self.report.trials)

    @property
    def seconds(self) -> float:
        return sum(trial.seconds for trial in self.report.trials)

    def curve(self) -> list[tuple[int, float]]:
        """Images trained on so far, and the part of the layers' bytes saved by then."""
        points, samples = [(0, 0.0)], 0
        for trial in self.report.trials:
            samples += trial.samples
            points += [(samples, points[-1][1]), (samples, trial.saved_bytes / self.report.layer_bytes)]
        return points


class _Printer(Listener):
    def __init__(self, console: Console) -> None:
        self._console, self._began = console, time.monotonic()

    def verdict(self, verdict: Any, report: MergeReport) -> None:
        word = "accepted" if verdict.accepted else "-"
        self._console.print(
            f"    {time.monotonic() - self._began:6.0f} s  {verdict.trial.group}: {word} ({verdict.outcome.ended});"
            f" {report.layer_saving:.1%} saved",
            highlight=False,
        )


def _output(arm: Arm, seed: int, folder: Path) -> Path:
    name = f"{arm.workload} {arm.name} {arm.target}".replace(",", "").replace(" ", "-")
    return folder / "runs" / f"{name}-{seed}"


def run_arm(arm: Arm, seed: int, folder: Path, budget: float | None, console: Console) -> Run:
    """Merge once, or read what an earlier call left."""
    workload = folder / f"{arm.workload}.yaml"
    if arm.target != 0.95:
        document = yaml.safe_load(workload.read_text())
        for query in document["queries"]:
            query["target"] = arm.target
        workload = folder / f"{arm.workload}-{arm.target}.yaml"
        workload.write_text(yaml.safe_dump(document, sort_keys=False))
    output = _output(arm, seed, folder)
    done = output / _DONE
    if not done.exists():
        console.print(f"{arm.workload}, {arm.name}, target {arm.target:.0%}, seed {seed}", highlight=False)
        options = Options(arm.strategy, arm.settings, seed=seed, budget=budget, resume=(output / "search").exists())
        merge_workload(load(workload), output, options, _Printer(console))
        done.write_text(json.dumps(confirm(workload, output / "workload.yaml")))
    return Run(arm, seed, read_report(output / "merge.json"), json.loads(done.read_text()))


def confirm(original: Path, merged: Path) -> dict[str, float]:
    """Accuracy of every merged query divided by the original's, on the images in ``test``."""
    before, after = (networks_of(load(path)) for path in (original, merged))
    workload = load(original)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for name, network in before.items():
        modules = [each.cut.stages["main"].module.eval().to(device) for each in (network, after[name])]
        for query in network.queries:
            assert query.data is not None and query.data.val is not None
            unseen = query.data.model_copy(update={"val": query.data.val.replace("/val", "/test")})
            judged = query.model_copy(update={"data": unseen})
            classes = getattr(network.cut.decode, "classes", None)
            _, images = load_data(judged, workload, network.cut.input, classes)
            teacher, student = (evaluate(module, images, device) for module in modules)
            task = task_of(network, query)
            was, now = (task.accuracy(outputs, teacher, images) for outputs in (teacher, student))
            found[query.name] = now / was
    return found


def table(runs: Sequence[Run]) -> str:
    """Markdown: medians over seeds, and the worst query over all of them."""
    lines = [
        "| workload | strategy | target | saved | worst, chosen | worst, confirmed | images | minutes | seeds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    by_arm: dict[tuple[str, str, float], list[Run]] = {}
    for run in runs:
        by_arm.setdefault((run.arm.workload, run.arm.name, run.arm.target), []).append(run)
    for (workload, name, target), same in by_arm.items():
        saved = [run.report.layer_saving for run in same]
        spread = f" ({min(saved):.1%} to {max(saved):.1%})" if max(saved) - min(saved) > 0.0005 else ""
        chosen = min(found.relative for run in same for found in run.report.queries.values())
        confirmed = min(value for run in same for value in run.confirmed.values())
        unfinished = "" if all(run.report.finished for run in same) else ", time was up"
        lines.append(
            f"| {workload.upper()} | {name} | {target:.0%} | {statistics.median(saved):.1%}{spread} | {chosen:.3f} |"
            f" {confirmed:.3f} | {statistics.median(run.samples for run in same) / 1e3:.0f}k |"
            f" {statistics.median(run.seconds for run in same) / 60:.1f}{unfinished} | {len(same)} |"
        )
    return "\n".join(lines)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Saving over images trained on, a panel a workload: the paper's incremental savings."""
    names = sorted({run.arm.workload for run in runs})
    figure, panels = plt.subplots(1, len(names), figsize=(5.5 * len(names), 4), squeeze=False, sharey=True)
    arms = list(dict.fromkeys((run.arm.name, run.arm.target) for run in runs))
    for panel, workload in zip(panels[0], names, strict=True):
        for index, key in enumerate(arms):
            same = [run for run in runs if run.arm.workload == workload and (run.arm.name, run.arm.target) == key]
            for count, run in enumerate(same):
                points = run.curve()
                label = f"{key[0]}, {key[1]:.0%}" if count == 0 else None
                style = "-" if run.arm.strategy == "together" else "--"
                panel.plot(
                    [max(samples, 1000) for samples, _ in points],
                    [100 * saved for _, saved in points],
                    style,
                    color=f"C{index % 10}",
                    label=label,
                    linewidth=1.6,
                )
        panel.set_title(workload.upper())
        panel.set_xscale("log")
        panel.set_xlabel("images trained on")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, loc="upper left")
    panels[0][0].set_ylabel("bytes of layers saved, %")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with CIFAR-10 and the checkpoints")
    parser.add_argument("--output", type=Path, default=_ROOT / "out/merge", help="folder for workloads and runs")
    parser.add_argument("--minutes", type=float, default=30, help="for all runs together, without --full")
    parser.add_argument("--full", action="store_true", help="three seeds and all arms, each to its end")
    parser.add_argument("--each", type=float, help="most minutes of a run, with --full; without it there is no limit")
    parser.add_argument("--only", help="arms whose workload and name this regular expression finds")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of 0, or 0 1 2 with --full")
    parser.add_argument("--report", type=Path, default=_ROOT / "docs/merging.md", help="where the table is put in")
    parser.add_argument("--summary", action="store_true", help="run nothing; write down the runs that are over")
    options = parser.parse_args(arguments)
    console = Console()
    if not options.summary:
        prepare(options.data, options.output)
    arms = [arm for arm in _arms() if options.full or not arm.full]
    arms = [arm for arm in arms if options.only is None or re.search(options.only, f"{arm.workload} {arm.name}")]
    seeds = options.seeds or ([0, 1, 2] if options.full else [0])
    minutes = options.each if options.full else options.minutes / (len(arms) * len(seeds))
    budget = None if minutes is None else minutes * 60
    wanted = [(arm, seed) for seed in seeds for arm in arms]
    if options.summary:
        wanted = [(arm, seed) for arm, seed in wanted if (_output(arm, seed, options.output) / _DONE).exists()]
        if not wanted:
            parser.error(f"no run is over yet in {options.output / 'runs'}")
    runs = [run_arm(arm, seed, options.output, budget, console) for arm, seed in wanted]
    console.print(table(runs), highlight=False, soft_wrap=True)
    _write(options.report, table(runs))
    draw(runs, options.report.parent / "images" / "merging.svg")


def _write(path: Path, content: str) -> None:
    """Replace what stands between the two marks of the document."""
    begin, end = "<!-- table -->\n", "<!-- end -->\n"
    text = path.read_text() if path.exists() else f"# Merging, measured\n\n{begin}{end}"
    head, rest = text.split(begin)
    path.write_text(f"{head}{begin}{content}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()

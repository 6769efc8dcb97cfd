"""Compare merging strategies on real models and images, and draw how the bytes they save grow with training.

    .venv/bin/python tools/bench_merge.py DATA          # half an hour on two cores
    .venv/bin/python tools/bench_merge.py DATA --full   # three seeds, no budget: many hours

The workloads are made first (``tools/merge_workloads.py``). Runs are kept below ``out/merge/short`` and
``out/merge/runs``, and a run that was stopped is resumed. All arms have the judge of ``gemel merge``: one half of the
images that no model was trained on chooses, the other half confirms. Writes a table into docs/merging.md, in which
rows that ``--only`` leaves out stay as they are, and a picture into docs/images.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import yaml
from count_images import ImageCount, count_images
from documents import joined_rows, write_between
from merge_workloads import ALL, prepare
from rich.console import Console

from gemel.bundles.merge_report import MergeReport, read_report
from gemel.merging.merge import Listener, MergeOptions, merge_workload
from gemel.merging.strategies import SearchSettings
from gemel.workload import load_workload

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Arm:
    """Strategy, settings and accuracy target with which a workload is merged in the benchmark."""

    name: str
    workload: str
    strategy: str = "together"
    settings: SearchSettings = field(default_factory=SearchSettings)
    target: float = 0.95


_DONE = "done.json"
"""Name of the file in the folder of a finished run with the number of images that went through models."""
_COUNTED = "images.json"
"""Name of the file in the folder of a run with the numbers of images that went through models so far."""
_MINUTES = {"w1": 2.25, "w3": 3.0}
"""Budget in minutes of each merge without --full, by workload; all merges take half an hour. Long enough for the
default strategy's first round on W1."""
_BETWEEN = SearchSettings(inside=False)
_GOOD = SearchSettings(rate=0.02)
_COMPRESSED = SearchSettings(retrain=False, differences=False, compress=True)
_DONOR = SearchSettings(rate=0.02, start="donor")


def _arms() -> Iterator[Arm]:
    yield Arm("together, between models", "w1", settings=_BETWEEN)
    for name in ("heaviest", "earliest", "latest", "random", "two-group", "one-model"):
        yield Arm(name, "w1", name, _GOOD)
    yield Arm("together", "w3")
    yield Arm("heaviest", "w3", "heaviest", _GOOD)


def _full_arms() -> Iterator[Arm]:
    yield from _arms()
    for workload in ("w1", "w2"):
        yield Arm("together", workload)
        # Separate the search from the starting weights: each strategy with the starting weights of the other.
        yield Arm("heaviest, donor start", workload, "heaviest", _DONOR)
        yield Arm("together, published start", workload, settings=replace(_BETWEEN, start="first"))
    yield Arm("together, between models", "w1", settings=_BETWEEN, target=0.98)
    yield Arm("together, labels too", "w1", settings=replace(_BETWEEN, supervision="both"), target=0.98)
    yield Arm("together, between models", "w2", settings=_BETWEEN)
    yield Arm("heaviest, published rate", "w1", "heaviest")
    yield Arm("heaviest, published rate", "w2", "heaviest")
    yield Arm("heaviest", "w2", "heaviest", _GOOD)
    for workload in ALL:
        yield Arm("nothing trained", workload, settings=SearchSettings(retrain=False))
        yield Arm("sharing only", workload, settings=SearchSettings(differences=False))
        yield Arm("compression only", workload, settings=_COMPRESSED)
        yield Arm("together, compressed", workload, settings=SearchSettings(compress=True))
    for workload in ("w3", "w4"):
        for target in (0.9, 0.98):
            yield Arm("compression only", workload, settings=_COMPRESSED, target=target)
            yield Arm("together, compressed", workload, settings=SearchSettings(compress=True), target=target)
    for workload in ("w4", "w5"):
        yield Arm("together, between models", workload, settings=_BETWEEN)
        yield Arm("together, published start", workload, settings=replace(_BETWEEN, start="first"))
        yield Arm("heaviest, published rate", workload, "heaviest")
        yield Arm("heaviest, donor start", workload, "heaviest", _DONOR)
        yield Arm("together", workload)
        yield Arm("heaviest", workload, "heaviest", _GOOD)


@dataclass
class Run:
    """Result of one merge with one seed: the report that it wrote, and the images that it took."""

    arm: Arm
    seed: int
    report: MergeReport
    images: int
    """Number of images that went through models in all of the merge: in training, by teachers, in looks at starts, for
    statistics and for evaluation."""

    @property
    def samples(self) -> tuple[int, int]:
        """Numbers of images that models were trained on: until the final saving was reached, and in total."""
        points = self.curve()
        return next(samples for samples, saved in points if saved == points[-1][1]), points[-1][0]

    @property
    def seconds(self) -> float:
        """Seconds that all trials of the merge took."""
        return sum(trial.seconds for trial in self.report.trials)

    def curve(self) -> list[tuple[int, float]]:
        """Return the merge's saving over training as points (images trained on, fraction of layers' bytes saved)."""
        points, samples = [(0, 0.0)], 0
        for trial in self.report.trials:
            samples += trial.samples
            points += [(samples, points[-1][1]), (samples, trial.saved_bytes / self.report.layer_bytes)]
        return points


class _Printer(Listener):
    """Progress on the console, and on disk the numbers of images, which a run that is resumed continues."""

    def __init__(self, console: Console, count: ImageCount, path: Path) -> None:
        self._console, self._began, self._count, self._path = console, time.monotonic(), count, path

    def verdict(self, verdict: Any, report: MergeReport) -> None:
        self._path.write_text(json.dumps(asdict(self._count)))
        word = "accepted" if verdict.accepted else "-"
        self._console.print(
            f"    {time.monotonic() - self._began:6.0f} s  {verdict.trial.group}: {word} ({verdict.outcome.ended});"
            f" {report.layer_saving:.1%} saved",
            highlight=False,
        )


def _output(arm: Arm, seed: int, runs: Path) -> Path:
    name = f"{arm.workload} {arm.name} {arm.target}".replace(",", "").replace(" ", "-")
    return runs / f"{name}-{seed}"


def run_arm(arm: Arm, seed: int, folder: Path, runs: Path, budget: float | None, console: Console) -> Run:
    """Merge a workload with one seed, or read the result that an earlier call kept.

    Args:
        arm: strategy, settings and workload of the merge.
        seed: random seed of the merge.
        folder: folder with the workloads.
        runs: folder in which finished merges are kept.
        budget: maximum number of seconds that the merge takes; None for no limit.
        console: console for progress.
    """
    workload = folder / f"{arm.workload}.yaml"
    if arm.target != 0.95:
        document = yaml.safe_load(workload.read_text())
        for query in document["queries"]:
            query["target"] = arm.target
        workload = folder / f"{arm.workload}-{arm.target}.yaml"
        workload.write_text(yaml.safe_dump(document, sort_keys=False))
    output = _output(arm, seed, runs)
    done = output / _DONE
    if not done.exists():
        console.print(f"{arm.workload}, {arm.name}, target {arm.target:.0%}, seed {seed}", highlight=False)
        options = MergeOptions(
            arm.strategy, arm.settings, seed=seed, budget=budget, resume=(output / "search").exists()
        )
        counted = output / _COUNTED
        earlier = ImageCount(**json.loads(counted.read_text())) if options.resume and counted.exists() else ImageCount()
        with count_images(earlier) as count:
            merge_workload(load_workload(workload), output, options, _Printer(console, count, counted))
        done.write_text(json.dumps({"images": count.all}))
    return Run(arm, seed, read_report(output / "merge.json"), **json.loads(done.read_text()))


def table(runs: Sequence[Run]) -> str:
    """Return a Markdown table of merges: medians over seeds, and the worst query over all seeds."""
    lines = [
        "| workload | strategy | target | saved | sharing | alone: sharing | compression | worst query | bound | back |"
        " images | in all | run | minutes | seeds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    by_arm: dict[tuple[str, str, float], list[Run]] = {}
    for run in runs:
        by_arm.setdefault((run.arm.workload, run.arm.name, run.arm.target), []).append(run)
    for (workload, name, target), same in by_arm.items():
        saved = [run.report.saving for run in same]
        spread = f" ({min(saved):.1%} to {max(saved):.1%})" if max(saved) - min(saved) > 0.0005 else ""
        queries = [found for run in same for found in run.report.queries.values()]
        worst = min(found.relative for found in queries)
        bounds = [found.own.low / found.target for found in queries if found.own is not None and found.own.images]
        back = sum(any("not confirmed" in note for note in found.notes) for found in queries)
        unfinished = "" if all(run.report.finished for run in same) else ", time was up"
        until, samples = (statistics.median(run.samples[which] for run in same) / 1e3 for which in (0, 1))
        lines.append(
            f"| {workload.upper()} | {name} | {target:.0%} | {statistics.median(saved):.1%}{spread} |"
            f" {' | '.join(_median_part(same, part) for part in ('sharing', 'sharing_alone', 'compression_alone'))} |"
            f" {worst:.3f} | {format(min(bounds), '.3f') if bounds else '-'} | {back} of {len(queries)} |"
            f" {until:.0f}k | {samples:.0f}k | {statistics.median(run.images for run in same) / 1e3:.0f}k |"
            f" {statistics.median(run.seconds for run in same) / 60:.1f}{unfinished} | {len(same)} |"
        )
    return "\n".join(lines)


def _median_part(runs: Sequence[Run], part: str) -> str:
    """Return the text for the median of a part of the saving over runs, ``-`` where a run did not measure it."""
    values = [getattr(run.report.parts, part) for run in runs if run.report.parts is not None]
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.1%}" if known else "-"


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw the saving of merges over the images trained on, one panel per workload, as a figure of the Gemel paper."""
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
    parser.add_argument("data", type=Path, help="folder with CIFAR-10, the checkpoints, and training videos")
    parser.add_argument("--output", type=Path, default=_ROOT / "out/merge", help="folder for workloads and runs")
    parser.add_argument("--full", action="store_true", help="three seeds, all arms, no budget")
    parser.add_argument("--each", type=float, metavar="MINUTES", help="budget of each run")
    parser.add_argument("--only", help="regular expression: run arms whose 'workload name' it matches")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds; default 0, or 0 1 2 with --full")
    parser.add_argument("--report", type=Path, default=_ROOT / "docs/merging.md", help="page to write the table into")
    parser.add_argument("--summary", action="store_true", help="run nothing; report the runs that are finished")
    options = parser.parse_args(arguments)
    console = Console()
    every, name = (_full_arms(), "runs") if options.full else (_arms(), "short")
    kept = options.output / name
    arms = [arm for arm in every if options.only is None or re.search(options.only, f"{arm.workload} {arm.name}")]
    if not options.summary:
        prepare(options.data, options.output, {arm.workload for arm in arms})
    wanted = [(arm, seed) for seed in options.seeds or ([0, 1, 2] if options.full else [0]) for arm in arms]
    if options.summary:
        wanted = [(arm, seed) for arm, seed in wanted if (_output(arm, seed, kept) / _DONE).exists()]
        if not wanted:
            parser.error(f"no run is over yet in {kept}")
    found = []
    for arm, seed in wanted:
        minutes = options.each or (None if options.full else _MINUTES[arm.workload])
        found.append(run_arm(arm, seed, options.output, kept, minutes and minutes * 60, console))
    console.print(table(found), highlight=False, soft_wrap=True)
    content = table(found)
    if options.only is not None and options.report.exists():
        content = joined_rows(options.report.read_text(), name, content, None, keys=3)
    write_between(options.report, name, content)
    draw(found, options.report.parent / "images" / f"merging-{name}.svg")


if __name__ == "__main__":
    main()

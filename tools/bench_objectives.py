"""Measure staleness curves of a bundle, and what plans for each objective promise and give under a small budget.

    .venv/bin/python tools/bench_objectives.py BUNDLE [--memory min] [--bandwidth 100MB] [--seconds 30] [--frames 300]

All feeds of the bundle must be recordings. The bundle is copied. The tables are written into docs/swapping.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import no_telemetry  # noqa: F401
from documents import write_between

from gemel.bundles.budget import parse_memory
from gemel.bundles.goals import OBJECTIVES
from gemel.bundles.reader import CACHE, MANIFEST, Bundle, open_bundle
from gemel.check.evaluation.evaluate import EvaluationSettings, evaluate_bundles
from gemel.check.evaluation.reference import OfflineSettings
from gemel.check.evaluation.staleness_curves import CurveMeasurement, measure_curves
from gemel.runtime.backends import open_backend
from gemel.runtime.loop.device_profile import profile_of
from gemel.runtime.memory.loading import Loading
from gemel.runtime.planning.planner import make_plan, policy_of
from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.promises import promises

DOC = Path(__file__).resolve().parent.parent / "docs" / "swapping.md"
AGES_S = (0.1, 0.3, 0.5, 1.0, 2.0)
"""Ages in seconds at which the table of curves has accuracies."""

Cells = Mapping[str, tuple[float, float, float | None, float]]
"""Query -> frames per second and accuracy that were promised, accuracy measured, and part of the frames processed."""


def with_curves(bundle: Bundle, found: CurveMeasurement, folder: Path) -> Bundle:
    """Copy a bundle with its device caches' folder left out, put staleness curves into its manifest, and open it."""
    copy = Path(shutil.copytree(bundle.path, folder, ignore=shutil.ignore_patterns(CACHE)))
    document = json.loads((copy / MANIFEST).read_text())
    for name, each in found.curves.items():
        document["queries"][name]["staleness"] = each.staleness.model_dump(mode="json")
    (copy / MANIFEST).write_text(json.dumps(document))
    return open_bundle(copy)


def curves_table(found: CurveMeasurement) -> str:
    """Return staleness curves as a Markdown table: a row per query, accuracies in % at some ages."""
    head = ["query", "frames", "objects", *(f"{age:g} s" for age in AGES_S)]
    lines = [f"| {' | '.join(head)} |", f"|---{'|--:' * (len(head) - 1)}|"]
    for name, each in found.curves.items():
        known = each.staleness
        places = [round(age * known.fps) for age in AGES_S]
        cells = [f"{100 * known.curve[at - 1]:.1f}" if 1 <= at <= len(known.curve) else "" for at in places]
        objects = "" if each.objects is None else str(each.objects)
        lines.append(f"| {' | '.join([name, str(known.frames), objects, *cells])} |")
    return "\n".join([*lines, *(f"\n{name}: {reason}." for name, reason in found.omitted.items())])


def measured(bundle: Bundle, profile: Profile, objective: str, settings: EvaluationSettings) -> Cells:
    """Return what a plan for an objective promises each query, and what a live run gave it."""
    plan = make_plan(profile, profile.budget(), policy_of("gemel", profile, objective))
    (run,) = evaluate_bundles(bundle, settings=settings).runs
    found = {}
    for name, promise in promises(profile, plan).items():
        score = run.scores[name]
        found[name] = (promise.fps, promise.accuracy or 0.0, score.accuracy, score.processed)
    return found


def objectives_table(cells: Mapping[str, Cells]) -> str:
    """Return a Markdown table: a row per query, a column per objective, and the lowest and mean accuracies."""
    lines = [f"| query | {' | '.join(cells)} |", f"|---{'|--:' * len(cells)}|"]

    def words(promised: float, given: float) -> str:
        return f"{100 * promised:.1f} / {100 * given:.1f}"

    for name in next(iter(cells.values())):
        row = [cells[objective][name] for objective in cells]
        texts = [f"{words(accuracy, given or 0.0)} ({100 * part:.0f})" for _, accuracy, given, part in row]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    for title, total in (("lowest", min), ("mean", fmean)):
        sums = [[total(each[at] or 0.0 for each in found.values()) for at in (1, 2)] for found in cells.values()]
        lines.append(f"| **{title}** | {' | '.join(words(*pair) for pair in sums)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--memory", default="min", help="budget for weights")
    parser.add_argument("--bandwidth", default="100MB", help="bytes that are loaded per second")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each live run")
    parser.add_argument("--frames", type=int, default=300, help="most frames of each feed for the curves")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    found = measure_curves(bundle, OfflineSettings(frames=arguments.frames, threads=1))
    table = curves_table(found)
    print(table)
    write_between(DOC, "staleness", table)
    loading = Loading(bandwidth=float(parse_memory(arguments.bandwidth)))
    with TemporaryDirectory() as folder:
        copy = with_curves(bundle, found, Path(folder) / "bundle")
        with open_backend(copy, memory=arguments.memory, threads=1, loading=loading) as backend:
            profile = profile_of(copy, backend)
        cells: dict[str, Cells] = {}
        for objective in OBJECTIVES:
            settings = EvaluationSettings(
                memory=[parse_memory(arguments.memory)],
                policies=["gemel"],
                objective=objective,
                seconds=arguments.seconds,
                threads=1,
                loading=loading,
            )
            cells[objective] = measured(copy, profile, objective, settings)
            print(objective, cells[objective])
    table = objectives_table(cells)
    print(table)
    write_between(DOC, "objectives", table)


if __name__ == "__main__":
    main()

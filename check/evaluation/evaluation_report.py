"""Report of an evaluation, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ...runtime.decode.agreement import MEASURES
from .evaluate import Evaluation, Run, Score

__all__ = ["best_run", "evaluation_tables", "evaluation_to_json", "mean"]

_NEAR = 0.01
"""Accuracy gain, on a scale from 0 to 1, up to which a run with a smaller memory budget is preferred."""


def mean(run: Run) -> Score:
    """Return the mean score of a run over its queries, each with equal weight; scores that are None are left out."""
    scores = run.scores.values()
    return Score(
        fmean(score.processed for score in scores),
        _mean(score.accuracy for score in scores),
        _mean(score.in_sla for score in scores),
    )


def best_run(found: Evaluation) -> Run:
    """Return the recommended run of an evaluation: the smallest memory budget that loses almost no accuracy.

    Of the runs whose mean accuracy over queries is at most 0.01 below the highest mean accuracy, the result has the
    smallest memory budget. If a merged and an unmerged bundle were evaluated, only runs of the merged one are compared.
    """
    name = list(found.bundles)[-1]
    known = [(mean(run).accuracy or 0.0, run) for run in found.runs if run.case.bundle == name]
    most = max(accuracy for accuracy, _ in known)
    near = [each for each in known if each[0] >= most - _NEAR]
    return min(near, key=lambda each: (each[1].case.budget, -each[0]))[1]


def evaluation_tables(found: Evaluation) -> list[Table]:
    """Return the tables of an evaluation, one per memory setting: one row per query, one column per bundle and policy.

    The caption of the last table says how accuracy is measured.
    """
    settings = dict.fromkeys(run.case.memory for run in found.runs)
    tables = [_table(found, [run for run in found.runs if run.case.memory == each]) for each in settings]
    for table in tables[-1:]:
        table.caption, table.caption_justify = _measures(found), "left"
    return tables


def _table(found: Evaluation, runs: Sequence[Run]) -> Table:
    runs = sorted(runs, key=lambda run: list(found.bundles).index(run.case.bundle))
    table = Table("query", title=_title(found, runs[0]), title_justify="left", box=SIMPLE)
    for run in runs:
        table.add_column(f"{run.case.bundle}\n{escape(run.case.policy or 'all in memory')}", justify="right")
    for query in runs[0].scores:
        table.add_row(escape(query), *(_pair(run.scores[query]) for run in runs))
    table.add_section()
    table.add_row("mean", *(_pair(mean(run)) for run in runs))
    table.add_row("blocked, % of time", *(f"{_blocked(run):.1f}" for run in runs))
    table.add_row("loaded, MB/s", *(f"{run.summary.swaps.bytes / _seconds(run) / 1e6:.1f}" for run in runs))
    return table


def _measures(found: Evaluation) -> str:
    """Return text that says how an evaluation measures the accuracy of each task, one task a line."""
    queries = next(iter(found.bundles.values())).manifest.queries.values()
    tasks = dict.fromkeys(query.task for query in queries)
    return "\n".join(f"accuracy of {task}: {MEASURES[task]}" for task in tasks)


def _title(found: Evaluation, run: Run) -> str:
    name, weights = next(iter(found.weights.items()))
    setting = str(run.case.memory)
    if setting.endswith("%"):
        whose = "the unmerged " if name == "unmerged" else ""
        setting += f" of {whose}{weights.total / 1e6:.1f} MB"
    size = f"{run.case.budget / 1e6:.1f} MB for weights"
    return size if isinstance(run.case.memory, int) else f"{setting}: {size}"


def _pair(score: Score) -> str:
    """Return the text of an evaluation's table cell for a query: frames processed in % / accuracy in %."""
    accuracy = "-" if score.accuracy is None else f"{score.accuracy * 100:.1f}"
    return f"{score.processed * 100:.1f}/{accuracy}"


def evaluation_to_json(found: Evaluation) -> dict[str, Any]:
    """Return an evaluation as a value that JSON can hold.

    Every run in the value also has the fields of summary.json. Accuracies and fractions are from 0 to 1.
    """
    content = next(iter(found.bundles.values())).manifest
    return {
        "seconds": found.settings.seconds,
        "sla_ms": content.sla_ms,
        "objective": found.settings.objective or content.objective,
        "threads": found.settings.threads,
        "loading": str(found.settings.loading),
        "bundles": {
            name: {
                "path": str(bundle.path),
                "bytes": found.weights[name].total,
                "least_bytes": found.weights[name].least,
            }
            for name, bundle in found.bundles.items()
        },
        "measures": {name: MEASURES[query.task] for name, query in content.queries.items()},
        "reference": {"bundle": next(iter(found.bundles)), "frames": dict(found.frames)},
        "feeds": dict(found.settings.sources),
        "runs": [_run(run) for run in found.runs],
    }


def _run(run: Run) -> dict[str, Any]:
    summary = run.summary.to_json()
    for name, score in run.scores.items():
        summary["queries"][name] |= _score(score)
    return {
        "bundle": run.case.bundle,
        "setting": run.case.memory,
        "policy": run.case.policy,
        "mean": _score(mean(run)),
        **summary,
    }


def _score(score: Score) -> dict[str, float | None]:
    parts = {"processed_part": score.processed, "accuracy": score.accuracy, "in_sla": score.in_sla}
    return {name: None if part is None else round(part, 4) for name, part in parts.items()}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _blocked(run: Run) -> float:
    """Return the percentage of a run's time in which no model ran because weights were being loaded."""
    return run.summary.swaps.blocked_ms / _seconds(run) / 10


def _seconds(run: Run) -> float:
    return max(run.summary.run.seconds, 1e-9)

"""Tables and JSON of an evaluation."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from gemel.bundles.reader import open_bundle
from gemel.check.evaluation.cases import Case, WeightBytes
from gemel.check.evaluation.evaluate import Evaluation, EvaluationSettings, Run, Score
from gemel.check.evaluation.evaluation_report import best_run, evaluation_tables, evaluation_to_json, mean
from gemel.runtime.loop.summary import FeedStats, MemoryUse, QueryStats, RunStats, Summary, SwapStats


def run(case: Case, processed: float, **accuracies: float | None) -> Run:
    """Return a run of 2 s with 0.5 s blocked and 4 MB loaded."""
    queries = {name: QueryStats("yard", 20, round(20 * processed)) for name in accuracies}
    stats = RunStats(2.0, queries, {"yard": FeedStats(20)})
    summary = Summary(stats, "ort-cpu", MemoryUse(case.budget, 1), SwapStats(3, 4_000_000, 500.0))
    return Run(case, summary, {name: Score(processed, accuracy, None) for name, accuracy in accuracies.items()})


@pytest.fixture
def found(bundle_folder: Path) -> Evaluation:
    bundle = open_bundle(bundle_folder / "bundle")
    runs = [
        run(Case("unmerged", "50%", 5_000_000, "nexus"), 0.25, a=0.5, b=0.25),
        run(Case("merged", "50%", 5_000_000, "gemel"), 0.75, a=0.9, b=None),
        run(Case("merged", "50%", 5_000_000, "nexus"), 0.7, a=0.895, b=None),
        run(Case("merged", 4_000_000, 4_000_000, "gemel"), 0.5, a=0.8, b=None),
        run(Case("merged", "all", 10_000_000, None), 1.0, a=0.905, b=None),
    ]
    weights = {"unmerged": WeightBytes(10_000_000, 3_000_000), "merged": WeightBytes(7_000_000, 3_500_000)}
    return Evaluation(EvaluationSettings(), {"unmerged": bundle, "merged": bundle}, weights, runs, {"yard": 20})


def test_a_query_without_a_score_is_not_in_the_mean(found: Evaluation) -> None:
    assert mean(found.runs[0]) == Score(0.25, 0.375, None)
    assert mean(found.runs[1]) == Score(0.75, 0.9, None)


def test_the_best_needs_least_memory_for_nearly_the_highest_accuracy(found: Evaluation) -> None:
    assert best_run(found).case == Case("merged", "50%", 5_000_000, "gemel")


def test_tables(found: Evaluation) -> None:
    console = Console(file=StringIO(), width=80)
    first, second, third = evaluation_tables(found)
    console.print(first)
    assert isinstance(console.file, StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    assert " ".join(lines[0]) == "50% of the unmerged 10.0 MB: 5.0 MB for weights"
    assert lines[1:3] == [["unmerged", "merged", "merged"], ["query", "nexus", "gemel", "nexus"]]
    assert lines[4:] == [
        ["a", "25.0/50.0", "75.0/90.0", "70.0/89.5"],
        ["b", "25.0/25.0", "75.0/-", "70.0/-"],
        ["mean", "25.0/37.5", "75.0/90.0", "70.0/89.5"],
        ["blocked,", "%", "of", "time", "25.0", "25.0", "25.0"],
        ["loaded,", "MB/s", "2.0", "2.0", "2.0"],
    ]
    assert [second.title, third.title] == ["4.0 MB for weights", "all: 10.0 MB for weights"]
    assert [first.caption, second.caption] == [None, None]
    assert third.caption == "accuracy of classification: top-1 accuracy; with several labels, F1"


def test_json(found: Evaluation) -> None:
    document = json.loads(json.dumps(evaluation_to_json(found), allow_nan=False))
    assert [each["setting"] for each in document["runs"]] == ["50%", "50%", "50%", 4_000_000, "all"]
    assert (
        document["runs"][0]["queries"]["a"] | {"processed_part": 0.25, "accuracy": 0.5, "in_sla": None}
        == (document["runs"][0]["queries"]["a"])
    )
    assert document["bundles"]["merged"]["least_bytes"] == 3_500_000
    assert set(document["measures"]) == {"a", "b", "c"}

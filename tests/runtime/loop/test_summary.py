"""The summary of a run, and summary.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemel.errors import InputError
from gemel.runtime.loop.summary import (
    FeedStats,
    Latency,
    MemoryUse,
    PlanStats,
    QueryStats,
    RunStats,
    Summary,
    SwapStats,
)

RUN = RunStats(
    seconds=4.0,
    queries={
        "people": QueryStats(
            "yard", 40, 30, errors=2, last_error="RuntimeError: no", latency=Latency(10.0, 20.0, 30.0)
        ),
        "cars": QueryStats("yard", 40, 0),
    },
    feeds={"yard": FeedStats(40, restarts=1, corrupt=3, error="connection reset")},
    plan=PlanStats(("people", "cars"), {"people": 2, "cars": 1}, 3),
)


def test_the_object_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    Summary(RUN, "ort-cpu", MemoryUse(64, 60), SwapStats(5, 100, 1.25), "nexus").write(path)
    assert json.loads(path.read_text()) == {
        "seconds": 4.0,
        "backend": "ort-cpu",
        "memory": {"budget": 64, "peak": 60},
        "queries": {
            "people": {
                "feed": "yard",
                "frames": 40,
                "processed": 30,
                "skipped": 10,
                "fps": 7.5,
                "latency_ms": {"p50": 10.0, "p90": 20.0, "p99": 30.0},
                "errors": 2,
                "last_error": "RuntimeError: no",
                "gave_up": False,
            },
            "cars": {
                "feed": "yard",
                "frames": 40,
                "processed": 0,
                "skipped": 40,
                "fps": 0.0,
                "latency_ms": {"p50": None, "p90": None, "p99": None},
                "errors": 0,
                "last_error": None,
                "gave_up": False,
            },
        },
        "feeds": {"yard": {"frames": 40, "restarts": 1, "corrupt": 3, "error": "connection reset"}},
        "swaps": {"count": 5, "bytes": 100, "blocked_ms": 1.25},
        "plan": {"policy": "nexus", "order": ["people", "cars"], "batches": {"people": 2, "cars": 1}, "replans": 3},
    }


def test_percentiles() -> None:
    latency = Latency.of([float(value) for value in range(101)])
    assert (latency.p50, latency.p90, latency.p99) == (50.0, 90.0, 99.0)
    assert Latency.of([]) == Latency(None, None, None)


def test_a_run_of_no_time() -> None:
    summary = Summary(RunStats(0.0, {"people": QueryStats("yard", 0, 0)}, {}), "ort-cpu")
    assert summary.to_json()["queries"]["people"]["fps"] == 0.0


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the summary"):
        Summary(RUN, "ort-cpu").write(tmp_path / "missing" / "summary.json")

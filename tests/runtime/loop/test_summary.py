"""The summary of a run, and summary.json."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gemel.runtime.loop.summary import (
    FeedStats,
    Latency,
    MemoryUse,
    PlanStats,
    QueryStats,
    RunCounts,
    RunStats,
    Summary,
    SwapStats,
)
from gemel.runtime.planning.promises import Promise

RUN = RunStats(
    seconds=4.0,
    queries={
        "people": QueryStats(
            "yard",
            40,
            30,
            errors=2,
            last_error="RuntimeError: no",
            latency=Latency(10.0, 20.0, 30.0),
            ran=RunCounts(12, 31),
        ),
        "cars": QueryStats("yard", 40, 0),
    },
    feeds={"yard": FeedStats(40, 1, 3, "connection reset", 5, 2, 1, 12.5, "running")},
    plan=PlanStats(
        ("people", "cars"),
        {"people": 2, "cars": 1},
        3,
        {"people": Promise(7.25, 10.0, 5.0, 0.91), "cars": Promise(1 / 3, 10.0, 0.0)},
    ),
)


def test_the_object_of_the_contract() -> None:
    outputs = {"jsonl": {"written": 3, "state": "running"}}
    summary = Summary(RUN, "ort-cpu", MemoryUse(64, 60), SwapStats(5, 100, 1.25), "nexus", "run-1", outputs)
    assert json.loads(json.dumps(summary.to_json())) == {
        "run": "run-1",
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
                "runs": 12,
                "frames_per_run": 2.583,
                "errors": 2,
                "last_error": "RuntimeError: no",
                "gave_up": False,
                "given_up": 0,
                "paused": False,
            },
            "cars": {
                "feed": "yard",
                "frames": 40,
                "processed": 0,
                "skipped": 40,
                "fps": 0.0,
                "latency_ms": {"p50": None, "p90": None, "p99": None},
                "runs": 0,
                "frames_per_run": None,
                "errors": 0,
                "last_error": None,
                "gave_up": False,
                "given_up": 0,
                "paused": False,
            },
        },
        "feeds": {
            "yard": {
                "frames": 40,
                "captured": 50,
                "restarts": 1,
                "corrupt": 3,
                "withheld": 5,
                "behind": 2,
                "left_out": 1,
                "lag_ms": 12.5,
                "state": "running",
                "error": "connection reset",
            }
        },
        "swaps": {"count": 5, "bytes": 100, "blocked_ms": 1.25},
        "plan": {
            "policy": "nexus",
            "order": ["people", "cars"],
            "batches": {"people": 2, "cars": 1},
            "replans": 3,
            "promised": {
                "people": {"fps": 7.25, "feed_fps": 10.0, "min_fps": 5.0, "accuracy": 0.91},
                "cars": {"fps": 0.333, "feed_fps": 10.0, "min_fps": 0.0, "accuracy": None},
            },
        },
        "stems": {},
        "outputs": outputs,
    }


def test_percentiles() -> None:
    latency = Latency.of([float(value) for value in range(101)])
    assert (latency.p50, latency.p90, latency.p99) == (50.0, 90.0, 99.0)
    assert Latency.of([]) == Latency(None, None, None)


def test_a_run_of_no_time() -> None:
    summary = Summary(RunStats(0.0, {"people": QueryStats("yard", 0, 0)}, {}), "ort-cpu")
    assert summary.to_json()["queries"]["people"]["fps"] == 0.0


STATES = {
    "a query that was given up": (QueryStats("f", 5, 3, 2, "no", gave_up=True), FeedStats(5), "no"),
    "a query that failed on every frame": (QueryStats("f", 5, 0, 2, "no"), FeedStats(5), "no"),
    "a query that was given up and answers again": (QueryStats("f", 50, 3, 20, "no", given_up=2), FeedStats(50), None),
    "a query that failed once": (QueryStats("f", 5, 4, 1, "no"), FeedStats(5), None),
    "a camera that was away for a while": (QueryStats("f", 5, 5), FeedStats(5, error="gone", state="running"), None),
    "a camera that is away": (QueryStats("f", 5, 5), FeedStats(5, error="gone", state="reconnecting"), None),
    "a recording that is cut off": (QueryStats("f", 5, 5), FeedStats(5, error="cut", state="failed"), "feed f: cut"),
    "a file that is missing": (QueryStats("f", 0, 0), FeedStats(0, error="missing", state="failed"), "feed f: missing"),
}
"""Case -> query, its feed, and the reason for which the query failed."""


@pytest.mark.parametrize("stopped", [True, False])
@pytest.mark.parametrize(("query", "feed", "reason"), STATES.values(), ids=STATES)
def test_what_failed_is_named(query: QueryStats, feed: FeedStats, reason: str | None, stopped: bool) -> None:
    summary = Summary(RunStats(1.0, {"q": query}, {"f": feed}), "ort-cpu", stopped=stopped)
    assert summary.failures == ({} if reason is None else {"q": reason})


@pytest.mark.parametrize("stopped", [True, False])
def test_a_camera_that_never_came_is_no_failure_of_a_run_that_was_stopped(stopped: bool) -> None:
    feed = FeedStats(0, error="connection refused", state="reconnecting")
    summary = Summary(RunStats(1.0, {"q": QueryStats("f", 0, 0)}, {"f": feed}), "ort-cpu", stopped=stopped)
    assert summary.failures == ({} if stopped else {"q": "feed f: connection refused"})


def test_outputs_and_the_summary_itself_may_fail() -> None:
    outputs: dict[str, dict[str, Any]] = {
        "jsonl": {"state": "failing", "error": "disk full"},
        "mqtt": {"state": "running", "error": None},
    }
    summary = Summary(RUN, "ort-cpu", outputs=outputs, unwritten="No space left on device")
    assert summary.failures == {"output jsonl": "disk full", "summary": "No space left on device"}

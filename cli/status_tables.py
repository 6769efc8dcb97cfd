"""Tables that show the status of a running ``gemel-run`` on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

__all__ = ["status_tables"]


def status_tables(status: Mapping[str, Any]) -> Iterator[Table | Text]:
    """Yield what ``gemel status`` prints: a line about the run, tables of queries, feeds and outputs, and memory.

    Args:
        status: answer to the request ``/status``.
    """
    state = (
        "running" if status["ready"] and status["healthy"] else "no sign of life" if status["ready"] else "preparing"
    )
    yield Text(f"{status['bundle']} on {status['backend'] or '-'}: {state} for {status['uptime_s']:.0f} s")
    promised = status.get("plan", {}).get("promised", {})
    queries = _table(
        "query", "feed", "fps", "promised", "processed", "skipped", "p50 ms", "p99 ms", "last answer", "state"
    )
    for name, query in status["queries"].items():
        state = "paused" if query.get("paused") else "given up" if query["gave_up"] else query["last_error"] or "ok"
        latency = query["latency_ms"]
        queries.add_row(
            Text(name),
            Text(query["feed"]),
            _number(query["fps"]),
            _promise(promised[name]) if name in promised else "-",
            str(query["processed"]),
            str(query["skipped"]),
            _number(latency["p50"]),
            _number(latency["p99"]),
            "-" if query["age_s"] is None else f"{query['age_s']:.1f} s ago",
            Text(state),
        )
    yield queries
    feeds = _table("feed", "state", "frames", "restarts", "corrupt", "withheld", "behind", "lag ms", "last failure")
    for name, feed in status["feeds"].items():
        counts = [str(feed[key]) for key in ("frames", "restarts", "corrupt", "withheld", "behind")]
        feeds.add_row(Text(name), feed["state"], *counts, _number(feed["lag_ms"]), Text(feed["error"] or "-"))
    yield feeds
    if status["outputs"]:
        outputs = _table("output", "state", "written", "dropped", "failed", "waiting", "last failure")
        for name, output in status["outputs"].items():
            counts = [str(output[key]) for key in ("written", "dropped", "failed", "waiting")]
            outputs.add_row(Text(name), output["state"], *counts, Text(output["error"] or "-"))
        yield outputs
    resident = sum(each["bytes"] for each in status["segments"] if each["resident"])
    total, budget = sum(each["bytes"] for each in status["segments"]), status["memory"]["budget"] or 0
    loads = status["swaps"]["count"]
    yield Text(
        f"weights: {resident / 1e6:.1f} of {total / 1e6:.1f} MB in memory, {budget / 1e6:.1f} MB allowed, {loads} loads"
    )
    last = status.get("reloads", {}).get("last")
    if last is not None:
        yield Text(f"last reload: {last['bundle']}: {last['error'] or 'done'}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        right = name in {
            "fps",
            "promised",
            "processed",
            "skipped",
            "p50 ms",
            "p99 ms",
            "frames",
            "restarts",
            "corrupt",
            "withheld",
        }
        table.add_column(name, justify="right" if right else "left")
    return table


def _promise(promise: Mapping[str, Any]) -> str:
    """Return text for what a plan promises a query: frames per second, and the expected accuracy if it is known."""
    accuracy = "" if promise["accuracy"] is None else f" ({promise['accuracy']:.1%})"
    return f"{_number(promise['fps'])}{accuracy}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

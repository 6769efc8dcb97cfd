"""Verdicts about samples as tables, JSON, and metrics for the textfile collector of Prometheus' node exporter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from time import time
from typing import Any, get_args

from rich.table import Table
from rich.text import Text

from ...errors import InputError, MissingExtraError
from .judge import DriftJudge, DriftVerdict, LeftOut, QueryDrift, Window

__all__ = ["check_metrics", "drift_lines", "drift_table", "drift_to_json", "since_line", "write_metrics"]

_COLORS: dict[DriftVerdict, str] = {"holds": "green", "watch": "yellow", "revert": "red", "unknown": "dim"}


def drift_table(judge: DriftJudge) -> Table:
    """Return a table with a row for each query: accuracy in all and in the newest window, evidence, verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("query", no_wrap=True)
    for name in ("samples", "judged", "accuracy", "newest window", "as given", "target", "evidence"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for query, drift in judge.drifts.items():
        newest = _windows(drift)[-1:]
        verdict = drift.verdict + (f" since {_moment(drift.reverted_at)}" if drift.reverted_at is not None else "")
        verdict += ", reverted" if query in judge.reverted else ""
        table.add_row(
            Text(query),
            str(drift.samples),
            str(drift.judged),
            _percent(drift.accuracy),
            "".join(f"{_percent(each.accuracy)} ({_span(each)})" for each in newest) or "-",
            _percent(drift.given),
            _percent(drift.target),
            f"{strength(drift.evidence, judge):.2f}",
            Text(verdict, style=_COLORS[drift.verdict]),
        )
    return table


def since_line(query: str, drift: QueryDrift) -> str:
    """Return a line about when the loss of a query that is to be reverted began, as the flag --since takes it."""
    assert drift.began_at is not None  # it is set with the verdict
    began = _moment(drift.began_at).replace(" ", "T")
    return f"query {query}: its loss began about {began}; gemel merge --from MERGED --samples DIR --since {began}"


def drift_lines(judge: DriftJudge) -> Iterator[str]:
    """Yield lines about when losses began, what was left out, and clocks."""
    for query, drift in judge.drifts.items():
        if drift.verdict == "revert":
            yield since_line(query, drift)
    for why, count in judge.left_out.items():
        yield f"left out, {why}: {count}, such as {judge.reasons[why][0]}"
    if judge.clocks_back:
        yield f"clocks: {judge.clocks_back} samples are older than an earlier frame of their run; a clock was set back"
    ahead = (judge.newest or 0.0) - time()
    if ahead > 60:
        yield f"clocks: the newest sample is {ahead:.0f} s in the future of this machine's clock"


def drift_to_json(judge: DriftJudge) -> dict[str, Any]:
    """Return all verdicts, with the accuracies of all windows, as JSON fields."""
    limits = judge.limits
    return {
        "bundle": judge.bundle.id,
        "originals": judge.original.id,
        "limits": {
            "samples": limits.samples,
            "false_reverts": limits.false_reverts,
            "false_watches": limits.false_watches,
            "window_s": limits.window_s,
        },
        "queries": {
            query: {**_query(drift, judge), "reverted": query in judge.reverted}
            for query, drift in judge.drifts.items()
        },
        "left_out": dict(judge.left_out),
        "examples": {why: list(reasons) for why, reasons in judge.reasons.items()},
        "clocks_back": judge.clocks_back,
        "newest": judge.newest,
    }


def strength(evidence: float, judge: DriftJudge) -> float:
    """Return evidence on a scale from 0 (none) to 1 (enough to revert), by its logarithm."""
    return min(1.0, math.log1p(evidence) / math.log1p(judge.limits.revert))


def check_metrics() -> None:
    """Check that metrics can be written.

    Raises:
        MissingExtraError: prometheus-client is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("--metrics", "service") from error


def write_metrics(path: Path, judge: DriftJudge) -> None:
    """Write verdicts as a metric text file, in one step.

    Raises:
        InputError: the file cannot be written.
        MissingExtraError: prometheus-client is not installed.
    """
    check_metrics()
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()

    def gauge(name: str, words: str, *labels: str) -> Gauge:
        return Gauge(f"gemel_drift_{name}", words, labels, registry=registry)

    target = gauge("target_ratio", "Accuracy relative to the original model that the query must keep.", "query")
    accuracy = gauge("accuracy_ratio", "Accuracy relative to the original model in the newest window.", "query")
    low = gauge("accuracy_low_ratio", "Lower end of the accuracy's interval of 95 % confidence.", "query")
    high = gauge("accuracy_high_ratio", "Upper end of the accuracy's interval of 95 % confidence.", "query")
    evidence = gauge("evidence_ratio", "Evidence of lost accuracy: 0 is none, at 1 the query is reverted.", "query")
    judged = gauge("samples", "Samples of the query that have a score.", "query")
    verdict = gauge("verdict", "1 for the verdict of the query, 0 for the others.", "query", "verdict")
    reverted = gauge("reverted", "1 if the query runs with its original weights in the bundle, 0 if not.", "query")
    left = gauge("left_out", "Samples or answers that were left out, by reason.", "reason")
    for query, drift in judge.drifts.items():
        target.labels(query).set(drift.target)
        evidence.labels(query).set(strength(drift.evidence, judge))
        judged.labels(query).set(drift.judged)
        reverted.labels(query).set(query in judge.reverted)
        for each in get_args(DriftVerdict):
            verdict.labels(query, each).set(each == drift.verdict)
        for window in _windows(drift)[-1:]:
            accuracy.labels(query).set(window.accuracy)
            low.labels(query).set(window.interval[0])
            high.labels(query).set(window.interval[1])
    for why in get_args(LeftOut):
        left.labels(why).set(judge.left_out[why])
    if judge.newest is not None:
        gauge("newest_sample_timestamp_seconds", "Time of the newest sample that was judged.").set(judge.newest)
    gauge("judged_timestamp_seconds", "When samples were last looked for.").set_to_current_time()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _query(drift: QueryDrift, judge: DriftJudge) -> dict[str, Any]:
    return {
        "verdict": drift.verdict,
        "target": drift.target,
        "accuracy": _rounded(drift.accuracy),
        "given": _rounded(drift.given),
        "samples": drift.samples,
        "judged": drift.judged,
        "evidence": _rounded(strength(drift.evidence, judge)),
        "reverted_at": drift.reverted_at,
        "began_at": drift.began_at,
        "windows": [
            {
                "start": window.start,
                "samples": len(window.scores),
                "accuracy": _rounded(window.accuracy),
                "low": _rounded(window.interval[0]),
                "high": _rounded(window.interval[1]),
            }
            for window in _windows(drift)
        ],
    }


def _windows(drift: QueryDrift) -> list[Window]:
    return [drift.windows[start] for start in sorted(drift.windows)]


def _moment(at: float) -> str:
    try:
        return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M:%S}Z"
    except (OverflowError, ValueError, OSError):
        return f"{at:.0f}"


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.1f} %"


def _span(window: Window) -> str:
    low, high = window.interval
    return f"{100 * low:.1f}-{100 * high:.1f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

"""Metrics of a running bundle for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from ...frames.frame import Frame
from ..decode.results import Result
from ..sinks.sink import Sink
from .status import RunStatus

__all__ = ["RunMetrics"]

_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds of the latency histogram's buckets, in seconds."""
_QUERY_COUNTERS = {
    "frames": "Frames that the query's feed delivered.",
    "processed": "Frames that the query answered.",
    "skipped": "Delivered frames that the query did not answer.",
    "errors": "Frames on which the query failed.",
    "runs": "Runs of the query's model that answered frames of the query.",
}
_FEED_COUNTERS = {
    "frames": "Frames that the feed delivered.",
    "restarts": "Times that the source was opened again.",
    "corrupt": "Pictures that could not be decoded.",
    "withheld": "Good pictures that were held back until the next key frame.",
    "behind": "Frames that were dropped because the feed was behind.",
}
_OUTPUT_COUNTERS = {
    "written": "Results or frames that the output took.",
    "dropped": "Results or frames that were dropped because the output's queue was full.",
    "failed": "Results or frames that the output could not write.",
}


class RunMetrics(Collector, Sink):
    """Prometheus metrics of one run.

    The class is a sink, to observe latencies; all other figures are read from the run's status when they are asked for.

    Args:
        status: source of the run's figures.
    """

    pixels, queued = False, False

    def __init__(self, status: RunStatus) -> None:
        self._status = status
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "gemel_query_latency_seconds",
            "Time from a frame's arrival to the result.",
            ["query"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._of_query: dict[str, Any] = {}
        self._registry.register(self)

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        histogram = self._of_query.get(query)
        if histogram is None:
            histogram = self._of_query[query] = self._latency.labels(query)
        histogram.observe(latency_ms / 1e3)

    def text(self) -> bytes:
        """Return all metrics of the run in Prometheus' text format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Yield no metric: without this method, the registry would ask for all figures before the run begins."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of the run's status as metrics."""
        status = self._status.to_json()
        info = {"version": status["version"], "backend": status["backend"], "bundle": status["bundle"]}
        yield InfoMetricFamily("gemel", "Version, backend and bundle of this run.", value=info)
        yield GaugeMetricFamily("gemel_ready", "Whether the run takes frames.", value=float(status["ready"]))
        yield GaugeMetricFamily("gemel_healthy", "Whether the runner gives signs of life.", value=status["healthy"])
        yield from _queries(status["queries"])
        yield from _feeds(status["feeds"])
        yield from _memory(status)
        for name, words in _OUTPUT_COUNTERS.items():
            counter = CounterMetricFamily(f"gemel_output_{name}", words, labels=["output"])
            for output, figures in status.get("outputs", {}).items():
                counter.add_metric([output], figures.get(name, 0))
            yield counter
        if "reloads" in status:
            counter = CounterMetricFamily("gemel_reloads", "Reloads of a bundle.", labels=["outcome"])
            for outcome in ("done", "failed"):
                counter.add_metric([outcome], status["reloads"].get(outcome, 0))
            yield counter


def _queries(queries: dict[str, Any]) -> Iterator[Metric]:
    for name, words in _QUERY_COUNTERS.items():
        counter = CounterMetricFamily(f"gemel_query_{name}", words, labels=["query", "feed"])
        for query, figures in queries.items():
            counter.add_metric([query, figures["feed"]], figures[name])
        yield counter
    age = GaugeMetricFamily("gemel_query_answer_age_seconds", "Time since the query's last answer.", labels=["query"])
    lost = GaugeMetricFamily("gemel_query_given_up", "Whether the query is left out after failures.", labels=["query"])
    paused = GaugeMetricFamily("gemel_query_paused", "Whether the user has paused the query.", labels=["query"])
    batch = GaugeMetricFamily("gemel_query_frames_per_run", "Mean frames that ran together.", labels=["query"])
    for query, figures in queries.items():
        if figures["frames_per_run"] is not None:
            batch.add_metric([query], figures["frames_per_run"])
        if figures["age_s"] is not None:
            age.add_metric([query], figures["age_s"])
        lost.add_metric([query], float(figures["gave_up"]))
        paused.add_metric([query], float(figures["paused"]))
    yield from (age, lost, paused, batch)


def _feeds(feeds: dict[str, Any]) -> Iterator[Metric]:
    for name, words in _FEED_COUNTERS.items():
        counter = CounterMetricFamily(f"gemel_feed_{name}", words, labels=["feed"])
        for feed, figures in feeds.items():
            counter.add_metric([feed], figures.get(name, 0))
        yield counter
    lag = GaugeMetricFamily("gemel_feed_lag_seconds", "Time that the feed is behind its camera.", labels=["feed"])
    state = GaugeMetricFamily("gemel_feed_running", "Whether the feed delivers frames.", labels=["feed"])
    paused = GaugeMetricFamily("gemel_feed_paused", "Whether the user has paused the feed.", labels=["feed"])
    for feed, figures in feeds.items():
        lag.add_metric([feed], (figures.get("lag_ms") or 0.0) / 1e3)
        state.add_metric([feed], float(figures.get("state", "running") == "running"))
        paused.add_metric([feed], float(figures.get("state") == "paused"))
    yield from (lag, state, paused)


def _memory(status: dict[str, Any]) -> Iterator[Metric]:
    resident = sum(each["bytes"] for each in status["segments"] if each["resident"])
    gauges = {
        "gemel_memory_resident_bytes": ("Bytes of weights in memory.", resident),
        "gemel_memory_peak_bytes": ("Largest bytes of weights in memory so far.", status["memory"]["peak"]),
        "gemel_memory_budget_bytes": ("Bytes of weights that are allowed in memory.", status["memory"]["budget"] or 0),
    }
    for name, (words, value) in gauges.items():
        yield GaugeMetricFamily(name, words, value=value)
    swaps = status["swaps"]
    yield CounterMetricFamily("gemel_loads", "Segment loads.", value=swaps["count"])
    yield CounterMetricFamily("gemel_loaded_bytes", "Bytes of segment loads.", value=swaps["bytes"])
    blocked = "Time in which no model ran because weights were loading."
    yield CounterMetricFamily("gemel_blocked_seconds", blocked, value=swaps["blocked_ms"] / 1e3)

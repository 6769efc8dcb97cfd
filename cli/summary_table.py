"""Table of frames and latencies that ``gemel-run`` prints at its end."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.table import Table

from ..runtime.loop.summary import Summary

__all__ = ["summary_table"]


def summary_table(summary: Summary) -> Table:
    """Return a table of a run's frames and latencies, one row per query.

    The caption tells the peak of resident weights, the accuracies that a plan promised, which feeds were restarted,
    corrupt or failed, and which outputs lost something.
    """
    run = summary.run
    caption = [
        f"{run.seconds:.1f} s on {summary.backend}, weights resident: at most {summary.memory.peak / 1e6:.1f} MB",
        *(
            f"query {name}: an expected accuracy of {promise.accuracy:.1%} was promised"
            for name, promise in run.plan.promised.items()
            if promise.accuracy is not None
        ),
        *(
            f"feed {name}: {feed.restarts} restarts, {feed.corrupt} corrupt frames, {feed.error or 'no error'}"
            for name, feed in run.feeds.items()
            if feed.restarts or feed.corrupt or feed.error
        ),
        *(
            f"output {name}: {counts['written']} written, {counts['dropped']} dropped, {counts['failed']} failed,"
            f" {counts['error'] or 'too slow'}"
            for name, counts in summary.outputs.items()
            if counts["dropped"] or counts["failed"] or counts["error"]
        ),
    ]
    table = Table(box=SIMPLE, caption="\n".join(caption), caption_justify="left")
    for column in ("query", "feed"):
        table.add_column(column)
    for column in ("frames", "processed", "skipped", "errors", "p50 ms", "p90 ms", "p99 ms"):
        table.add_column(column, justify="right")
    for name, query in run.queries.items():
        latency = [f"{value:.1f}" if value is not None else "-" for value in query.latency.to_json().values()]
        counts = [str(value) for value in (query.frames, query.processed, query.skipped, query.errors)]
        table.add_row(name, query.feed, *counts, *latency)
    return table

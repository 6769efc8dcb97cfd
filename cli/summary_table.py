"""Table that ``gemel-run`` prints at its end."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.table import Table

from ..runtime.loop.summary import Summary

__all__ = ["summary_table"]


def summary_table(summary: Summary) -> Table:
    """Return a table with one row per query; memory, and feeds that had trouble, are in the caption."""
    run = summary.run
    caption = [
        f"{run.seconds:.1f} s on {summary.backend}, weights resident: at most {summary.memory.peak / 1e6:.1f} MB",
        *(
            f"feed {name}: {feed.restarts} restarts, {feed.corrupt} corrupt frames, {feed.error or 'no error'}"
            for name, feed in run.feeds.items()
            if feed.restarts or feed.corrupt or feed.error
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

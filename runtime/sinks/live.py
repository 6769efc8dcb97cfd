"""Sink that shows the queries of a run as a table on the terminal while the run goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...frames.frame import Frame
from ..decode.results import Result
from ..feeds import Feed
from .sink import Sink
from .words import words

__all__ = ["LiveTable"]

_WINDOW = 60
"""Number of newest results of a query from which its rate and latency in the table are computed."""


@dataclass(slots=True)
class _Row:
    """State of one query in the live table: its counts, newest result and latest times."""

    feed: str
    processed: int = 0
    """Number of frames that the query answered."""
    delivered: int = 0
    """Number of frames of the feed up to the newest one that the query took."""
    said: str = "-"
    """Text of the table's last column: the query's newest result in words, or the message of a failure."""
    failed: bool = False
    """Whether the query failed on its newest frame."""
    moments: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))


class LiveTable(Sink):
    """Sink that shows a live table with a row per query: rate and latency of the newest frames, counts, newest result.

    Nothing is shown if ``console`` is not a terminal.

    Args:
        queries: query name -> name of its feed.
        feeds: feeds by name; each one that was restarted, or ended with an error, adds a line below the table.
        console: console on which the table is shown; the standard output if left out.
    """

    pixels, queued = False, False

    def __init__(
        self, queries: Mapping[str, str], *, feeds: Mapping[str, Feed] | None = None, console: Console | None = None
    ) -> None:
        self._queries = queries
        self._rows = {query: _Row(feed) for query, feed in queries.items()}
        self._feeds = feeds or {}
        self._live: Live | None = None
        console = console or Console()
        if console.is_terminal:
            # Transient: the table disappears at the end, because the summary that follows says the same.
            self._live = Live(
                console=console, get_renderable=self.table, refresh_per_second=4, transient=True, redirect_stderr=True
            )
            self._live.start()

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        row = self._row(query, frame)
        row.processed += 1
        row.latencies.append(latency_ms)
        row.moments.append(monotonic())
        row.delivered, row.said, row.failed = frame.index + 1, words(result), False

    def on_error(self, query: str, frame: Frame, message: str) -> None:
        row = self._row(query, frame)
        row.delivered, row.said, row.failed = frame.index + 1, message, True

    def _row(self, query: str, frame: Frame) -> _Row:
        """Return the row of a query; a reload of the bundle may bring new queries."""
        return self._rows.setdefault(query, _Row(frame.feed))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def table(self) -> Table:
        """Return the table of all queries with their present counts, times and results."""
        table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
        table.add_column("query", no_wrap=True)
        table.add_column("feed", style="dim", no_wrap=True)
        for name in ("fps", "processed", "skipped", "p50 ms"):
            table.add_column(name, justify="right")
        table.add_column("last result", ratio=1, no_wrap=True, overflow="ellipsis")
        for query, row in list(self._rows.items()):
            if query not in self._queries:
                continue
            latencies, moments = list(row.latencies), list(row.moments)
            span = moments[-1] - moments[0] if len(moments) > 1 else 0.0
            table.add_row(
                Text(query),
                Text(row.feed),
                f"{(len(moments) - 1) / span:.1f}" if span > 0 else "-",
                str(row.processed),
                str(row.delivered - row.processed),
                f"{median(latencies):.1f}" if latencies else "-",
                Text(row.said, style="red" if row.failed else ""),
            )
        troubled = [
            f"feed {name}: {feed.counts.restarts} restarts, {feed.error}"
            for name, feed in self._feeds.items()
            if feed.error
        ]
        if troubled:
            table.caption = Text("\n".join(troubled), style="yellow")
        return table

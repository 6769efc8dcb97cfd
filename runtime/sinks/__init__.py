"""Sinks, which receive the results of a run and write them to a file, draw them on videos, or show them in a table."""

from __future__ import annotations

from .live import LiveTable
from .outputs import OutputSink, open_outputs
from .run_info import RunInfo
from .sink import Sink
from .sink_counts import SinkCounts

__all__ = ["LiveTable", "OutputSink", "RunInfo", "Sink", "SinkCounts", "open_outputs"]

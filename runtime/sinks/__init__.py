"""Sinks: results are written to a file, drawn on videos, or shown in a table."""

from __future__ import annotations

from .jsonl import ResultsSink
from .live import LiveTable
from .sink import Sink
from .video import VideoSink

__all__ = ["LiveTable", "ResultsSink", "Sink", "VideoSink"]

"""Sinks: where results go."""

from __future__ import annotations

from .live import LiveTable
from .results import ResultsSink
from .sink import Sink
from .video import VideoSink

__all__ = ["LiveTable", "ResultsSink", "Sink", "VideoSink"]

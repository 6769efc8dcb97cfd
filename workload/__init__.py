"""The workload: reading and checking workload.yaml, and loading the models and data that it names."""

from __future__ import annotations

from .document.load import load_workload
from .document.schema import Workload

__all__ = ["Workload", "load_workload"]

"""Reading and checking of workload.yaml, and loading of the models and data sets that the file names."""

from __future__ import annotations

from .document.load import load_workload
from .document.schema import Workload

__all__ = ["Workload", "load_workload"]

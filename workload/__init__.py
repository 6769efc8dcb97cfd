"""Workloads: what a user asks for, read and checked, and the models it names."""

from __future__ import annotations

from .document.load import load_workload
from .document.schema import Workload

__all__ = ["Workload", "load_workload"]

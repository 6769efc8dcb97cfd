"""Workloads: what a user asks for, read and checked, and the models it names."""

from __future__ import annotations

from .load import load
from .schema import Workload

__all__ = ["Workload", "load"]

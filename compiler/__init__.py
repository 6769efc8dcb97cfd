"""Compiler that turns the PyTorch and ONNX models of a workload into a bundle, with one copy of every weight."""

from __future__ import annotations

from .compile import Report, compile_workload

__all__ = ["Report", "compile_workload"]

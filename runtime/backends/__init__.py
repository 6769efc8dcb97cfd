"""Backends: each one runs programs on one kind of device. Importing this package imports no backend."""

from .protocol import Backend
from .registry import BACKENDS, check_backend, open_backend

__all__ = ["BACKENDS", "Backend", "check_backend", "open_backend"]

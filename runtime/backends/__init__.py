"""Backends: each runs programs on one kind of device. Importing this package imports none of them."""

from .protocol import Backend
from .registry import BACKENDS, check_backend, open_backend

__all__ = ["BACKENDS", "Backend", "check_backend", "open_backend"]

"""Models of the coverage page, one module per family."""

from __future__ import annotations

from .case import Case

__all__ = ["CASES"]

CASES: tuple[Case, ...] = ()

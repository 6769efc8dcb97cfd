"""Models of the coverage page, one module per family."""

from __future__ import annotations

from .case import Case
from .torchvision_models import CASES as TORCHVISION

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (*TORCHVISION,)

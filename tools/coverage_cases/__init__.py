"""Models of the coverage page, one module per family."""

from __future__ import annotations

from .case import Case
from .file_kinds import CASES as FILE_KINDS
from .torchvision_models import CASES as TORCHVISION
from .ultralytics_exports import CASES as ULTRALYTICS

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    *FILE_KINDS,
    *TORCHVISION,
    *ULTRALYTICS,
)

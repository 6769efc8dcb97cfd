"""Models that docs/coverage.md lists with their answers, one module per family."""

from __future__ import annotations

from .case import Case
from .detector_layouts import CASES as DETECTORS
from .face_layouts import CASES as FACE_LAYOUTS
from .face_models import CASES as FACES
from .file_kinds import CASES as FILE_KINDS
from .hugging_face import CASES as HUGGING_FACE
from .hugging_face_detectors import CASES as HUGGING_FACE_DETECTORS
from .package_models import CASES as PACKAGES
from .segmentation_models import CASES as SEGMENTATION_MODELS
from .text_models import CASES as TEXT
from .timm_models import CASES as TIMM
from .torchvision_dense import CASES as TORCHVISION_DENSE
from .torchvision_models import CASES as TORCHVISION
from .ultralytics_exports import CASES as ULTRALYTICS

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    *FILE_KINDS,
    *TORCHVISION,
    *TORCHVISION_DENSE,
    *TIMM,
    *ULTRALYTICS,
    *DETECTORS,
    *FACE_LAYOUTS,
    *HUGGING_FACE,
    *HUGGING_FACE_DETECTORS,
    *SEGMENTATION_MODELS,
    *FACES,
    *TEXT,
    *PACKAGES,
)

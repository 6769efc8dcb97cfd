"""The file calibration.json: value ranges, layers that stay float32, and what lower precision costs each query.

The file is part of a bundle. Compiling a workload into the same bundle again reuses ranges and layers of models whose
weights and frames have not changed. With ``--calibration FILE``, another bundle's file is used without any frames.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from ..bundles.manifest import Id, Name, Precision
from ..bundles.value import Value, problem
from ..errors import CalibrationError
from .ranges import Method

__all__ = [
    "CALIBRATION",
    "CALIBRATION_VERSION",
    "Calibration",
    "LowerPrecision",
    "ModelRecord",
    "QueryRecord",
    "read_calibration",
]

CALIBRATION = "calibration.json"
"""Name of the file in a bundle."""
CALIBRATION_VERSION = "1.0"
"""Version of the file format; a file of another major version is refused."""

Part = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""
LowerPrecision = Literal["fp16", "int8"]
"""A precision that models are converted to."""


class ModelRecord(Value):
    """Ranges of one model, and the model and frames for which they were measured."""

    precision: LowerPrecision
    """Precision that the workload requested."""
    model: str
    """SHA-256 of the float32 graph with its weights."""
    data: str
    """SHA-256 of the frames to calibrate on and the images to judge by, as the model sees them."""
    frames: int
    """Number of frames that the model was calibrated on."""
    peaks: dict[str, Annotated[float, Field(gt=0)]]
    """Value -> its largest absolute value: int8 has every value that is rounded, fp16 those too large for float16."""


class QueryRecord(Value):
    """Accuracy of one query and bytes of its model, in float32 and in lower precision."""

    precision: Precision
    """Precision of the query's model."""
    images: int
    """Number of images that the accuracies were measured on."""
    labelled: bool
    """Whether the images have labels; without labels, accuracy is agreement with the float32 model."""
    fp32: Part
    """Accuracy in float32."""
    accuracy: Part
    """Accuracy in lower precision."""
    floor: Part
    """Least accuracy that is allowed in lower precision."""
    fp32_bytes: int
    """Bytes of the model's weights in float32."""
    bytes: int
    """Bytes of the model's weights in lower precision."""


class Calibration(Value):
    """Content of the file."""

    schema_version: str = CALIBRATION_VERSION
    method: Method
    """Method that chose the int8 ranges."""
    models: dict[Name, ModelRecord]
    kept: dict[Id, str]
    """Hash of a kernel that stays float32 -> the reason."""
    queries: dict[Name, QueryRecord]
    refused: dict[Name, str] = Field(default_factory=dict)
    """Model that stays float32 -> the reason."""


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        CalibrationError: the file cannot be read, is no calibration, or has another major version.
    """
    try:
        document = json.loads(path.read_bytes())
        version = str(document["schema_version"])
        if version.partition(".")[0] != CALIBRATION_VERSION.partition(".")[0]:
            raise CalibrationError(f"{path}: schema_version is {version}, this gemel reads {CALIBRATION_VERSION}")
        return Calibration.model_validate(document)
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise CalibrationError(f"{path}: {problem(error)}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CalibrationError(f"{path}: is no calibration that gemel-compile wrote") from error

"""Schema and reader of calibration.json: value ranges, layers that stay float32, and accuracy of each query.

The file is part of a bundle. When a workload is compiled into the same bundle again, ranges and the choice of float32
layers are reused for models whose weights and frames have not changed. With ``--calibration FILE``, the file of another
bundle is used and no frames are read.
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
"""Name of the calibration file in a bundle."""
CALIBRATION_VERSION = "1.0"
"""Version of the format of calibration.json; a file of another major version is refused."""

Part = Annotated[float, Field(ge=0, le=1)]
"""Type of a fraction: a number from 0 to 1."""
LowerPrecision = Literal["fp16", "int8"]
"""Name of a precision that models can be converted to from float32."""


class ModelRecord(Value):
    """Value ranges of one model, and digests of the model and frames for which they were measured."""

    precision: LowerPrecision
    """Precision that the workload requested for a model."""
    model: str
    """SHA-256 of a model's float32 graph with its weights."""
    data: str
    """SHA-256 of a model's calibration frames, the images that accuracy is measured on, and their preprocessing."""
    frames: int
    """Number of frames that a model was calibrated on."""
    peaks: dict[str, Annotated[float, Field(gt=0)]]
    """Name of a value in a model's graph -> its largest absolute value on the calibration frames.

    An int8 model lists every value that may be quantized, an fp16 model only values that are too large for float16.
    """


class QueryRecord(Value):
    """Accuracy of one query and size of its model's weights, in float32 and in lower precision."""

    precision: Precision
    """Precision that the model of a query was converted to."""
    images: int
    """Number of images that a query's accuracies were measured on."""
    labelled: bool
    """Whether a query's images have labels; without labels, accuracy is agreement with the float32 model."""
    fp32: Part
    """Accuracy of a query in float32, from 0 to 1."""
    accuracy: Part
    """Accuracy of a query in lower precision, from 0 to 1."""
    floor: Part
    """Minimum accuracy that a query must keep in lower precision, from 0 to 1."""
    fp32_bytes: int
    """Bytes of the weights of a query's model in float32."""
    bytes: int
    """Bytes of the weights of a query's model in lower precision."""


class Calibration(Value):
    """Content of calibration.json: value ranges of models, kernels that stay float32, and accuracies of queries."""

    schema_version: str = CALIBRATION_VERSION
    method: Method
    """Name of the method that chose the value ranges of int8 models."""
    models: dict[Name, ModelRecord]
    """Model -> the model's precision and value ranges."""
    kept: dict[Id, str]
    """Hash of each kernel that stays float32 -> the reason."""
    queries: dict[Name, QueryRecord]
    """Query -> the query's accuracies and the bytes of its model's weights."""
    refused: dict[Name, str] = Field(default_factory=dict)
    """Name of each model that stays float32 as a whole -> the reason."""


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        CalibrationError: the file cannot be read, is not a calibration, or has another major version.
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

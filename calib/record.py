"""calibration.json: the ranges that models were made narrower by, which layers were not, and what that cost.

It is part of a bundle. A workload that is compiled again into it takes ranges and layers from there where neither
models nor frames have changed; and without the frames, from a file that ``--calibration`` names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..bundles.manifest import Id, Name, Precision, problem
from ..errors import CalibrationError
from .ranges import Method

__all__ = ["CALIBRATION", "CALIBRATION_VERSION", "Calibration", "ModelRecord", "QueryRecord", "read_calibration"]

CALIBRATION = "calibration.json"
"""Its name in a bundle."""
CALIBRATION_VERSION = "1.0"

Part = Annotated[float, Field(ge=0, le=1)]


class _Value(BaseModel):
    # Unknown fields are ignored: a newer version may add some.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ModelRecord(_Value):
    precision: Literal["fp16", "int8"]
    """That was asked for."""
    model: str
    """SHA-256 of the float32 graph with its weights."""
    data: str
    """SHA-256 of the frames, and of the images that it is judged by, as the model sees them."""
    frames: int
    peaks: dict[str, Annotated[float, Field(gt=0)]]
    """Largest absolute values: for int8 of all that is rounded, for fp16 of what float16 might not hold."""


class QueryRecord(_Value):
    precision: Precision
    images: int
    """That it was judged by."""
    labelled: bool
    """Else accuracy is agreement with the float32 model."""
    fp32: Part
    """Accuracy before."""
    accuracy: Part
    floor: Part
    """What it must not fall below."""
    fp32_bytes: int
    """Of the model's weights before."""
    bytes: int


class Calibration(_Value):
    schema_version: str = CALIBRATION_VERSION
    method: Method
    models: dict[Name, ModelRecord]
    kept: dict[Id, str]
    """Kernels that stay float32 by their hash, and why."""
    queries: dict[Name, QueryRecord]
    refused: dict[Name, str] = {}
    """Models that stay float32, and why."""


def read_calibration(path: Path) -> Calibration:
    """
    Raises:
        CalibrationError: the file cannot be read, or is none.
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

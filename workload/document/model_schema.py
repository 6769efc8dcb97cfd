"""Schema of the keys ``model`` and ``model.input`` of a query in workload.yaml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from . import meant
from .strict import Strict

__all__ = ["NAMES_SCHEMA", "Input", "Model"]

NAMES_SCHEMA = {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 1}
"""JSON schema of a list of names or numbers, as several keys of workload.yaml take."""
_NUMBERS = {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]}
_FRACTION = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[0-9.]+\s*/\s*[0-9.]+$"}]}
_Numbers = Annotated[tuple[float, ...], BeforeValidator(meant.parse_numbers), WithJsonSchema(_NUMBERS)]
"""Type of a value that is one number, or one number for each of three colour channels."""


class Input(Strict):
    """Preprocessing of a frame: ``(pixel * scale - mean) / std``. Keys that are left out come from the model itself."""

    size: Annotated[tuple[int, int], BeforeValidator(meant.parse_size)] | None = None
    """Size of the model's input, ``[height, width]`` in pixels."""
    mean: _Numbers | None = None
    """Mean that is subtracted from scaled pixels: one number, or one for each channel. Give ``std``, too."""
    std: _Numbers | None = None
    """Standard deviation that pixels are divided by after ``mean`` is subtracted: one number, or one for each channel.
    Give ``mean``, too."""
    scale: Annotated[float, BeforeValidator(meant.parse_fraction), WithJsonSchema(_FRACTION)] | None = None
    """Factor for pixels from 0 to 255, such as ``1/255`` (most models) or 1.0."""
    color: Literal["rgb", "bgr", "gray"] | None = None
    """Order of the colours in the model's input."""
    fit: Literal["stretch", "letterbox", "letterbox-center"] | None = None
    """Way to resize a frame to the input's size: ``stretch`` ignores the aspect ratio; ``letterbox`` keeps it, with the
    frame at the top left, and ``letterbox-center`` with the frame in the middle."""
    pad: float | None = None
    """Value of the input outside a letterboxed frame, in units of the normalised input."""
    rounding: Literal["nearest", "up", "down"] | None = None
    """Way to round the sides of a letterboxed frame to whole pixels: ``nearest``, ``up`` or ``down``."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        return f"size: {list(value)}" if isinstance(value, list | tuple) and len(value) == 2 else ""

    @field_validator("size")
    @classmethod
    def _positive(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        """Check that height and width of a model's input are at least one pixel."""
        if value is not None and min(value) < 1:
            raise meant.mistake("height and width in pixels must be at least 1")
        return value

    @field_validator("mean", "std")
    @classmethod
    def _channels(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """Check that mean or std of a model's input has one number, or one for each of three channels."""
        if value is not None and len(value) not in (1, 3):
            raise meant.mistake("one number, or one for each of three channels, is expected")
        return value

    @field_validator("std", "scale")
    @classmethod
    def _nonzero(cls, value: Any) -> Any:
        """Check that no number of std or scale of a model's input is 0."""
        if value is not None and 0 in (value if isinstance(value, tuple) else (value,)):
            raise meant.mistake("numbers other than 0 are expected")
        return value

    @model_validator(mode="after")
    def _plausible(self) -> Input:
        """Check that mean and std of a model's input are given together, and fit the scale."""
        meant.check_normalisation(self.mean, self.std, self.scale)
        return self


class Model(Strict):
    """Model of a query: a PyTorch factory with arguments and weights, or an ONNX file."""

    factory: Annotated[str, AfterValidator(meant.check_factory)] | None = None
    """``module:callable`` that returns an ``nn.Module``; the module is installed, or beside the workload file."""
    onnx: Annotated[str, AfterValidator(meant.check_onnx)] | None = None
    """Path of the model's ONNX file."""
    args: dict[str, Any] = Field(default={})
    """Keyword arguments of the model's factory."""
    weights: str | None = None
    """Path of a state dict for the factory's module: ``.safetensors``, ``.pt``, ``.pth`` or ``.th``."""
    base: str | None = None
    """Path of the weights that the model was fine-tuned from, in a file like the model's own; that of the workload if
    left out. Merging then keeps the model's weights as differences to these."""
    outputs: (
        Annotated[list[str], BeforeValidator(meant.parse_names), Field(min_length=1), WithJsonSchema(NAMES_SCHEMA)]
        | None
    ) = None
    """Outputs of the model to use, by name or position; all that the task needs if left out."""
    input: Input = Input()
    """Preprocessing of frames for the model; keys that are left out come from the model itself."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        if not isinstance(value, str):
            return ""
        return f"onnx: {value}" if value.endswith(".onnx") else f"factory: {value}" if ":" in value else ""

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        """Check that the model of a query comes from a factory or from an ONNX file, not both."""
        if (self.factory is None) == (self.onnx is None):
            raise meant.mistake("a model has either factory (module:callable) or onnx (a file)")
        if self.onnx is not None and (self.args or self.weights):
            raise meant.mistake("args and weights go with factory; an ONNX file has its own")
        return self

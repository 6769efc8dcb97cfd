"""Base class for the schema of workload.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from . import meant

__all__ = ["Strict"]

_HOMES = {
    **dict.fromkeys(("backend", "memory"), "device"),
    **dict.fromkeys(("source", "fps", "loop"), "a feed"),
    **dict.fromkeys(("factory", "onnx", "args", "weights", "outputs", "input"), "model"),
    **dict.fromkeys(("size", "mean", "std", "scale", "color", "fit", "pad", "rounding"), "model.input"),
    **dict.fromkeys(("train", "val"), "data"),
    **dict.fromkeys(
        (
            *("task", "decode", "activation", "labels", "classes", "threshold", "target", "precision"),
            # Not weight, which in a model is rather a slip of the pen for weights.
            *("min_fps", "priority"),
        ),
        "a query",
    ),
    **dict.fromkeys(("jsonl", "mqtt", "webhook", "video", "snapshots", "samples"), "outputs"),
    **dict.fromkeys(("sla", "objective", "staleness", "device", "feeds", "queries"), "the top level of the file"),
}
"""Key of workload.yaml -> section that the key belongs in, for messages about a key in the wrong section."""


class Strict(BaseModel):
    """Base of all sections of a workload: frozen, without unknown keys, and with finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    homes: ClassVar[Mapping[str, str]] = _HOMES
    """Key -> section of the file that the key belongs in, for messages about a key in the wrong section."""
    secret: ClassVar[bool] = False
    """Whether a value that stands in place of a section of a workload may hold a password, so that no message may print
    it."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        """Refuse a section of a workload that is not a mapping or has an unknown key; suggest what was meant."""
        known = list(cls.model_fields)
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            guess = cls._meant(value)
            keys = f"keys: {', '.join(known)}"
            message = f"a mapping is expected; {f'did you mean {{{guess}}}?' if guess else keys}"
            raise meant.mistake(message, secret=cls.secret)
        for key in value:
            if key not in known:
                near = meant.nearest(str(key), known)
                hint = f"did you mean {near!r}? " if near else ""
                if key in cls.homes:
                    hint = f"it belongs in {cls.homes[key]}; "
                message = f"unknown key {key!r:.64}; {hint}allowed: {', '.join(known)}"
                raise PydanticCustomError("unknown_key", "{message}", {"message": message, "name": key})
        return value

    @classmethod
    def _meant(cls, value: Any) -> str:
        """Return, as YAML without braces, the mapping that the user probably meant by a value that is not a mapping;
        empty if unknown."""
        return ""

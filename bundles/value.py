"""Base class of values that are read from JSON files, and one-line messages about values that are not valid."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Value", "problem"]


class Value(BaseModel):
    """Immutable object read from a JSON file. Unknown fields are ignored: a newer minor version may add fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


def problem(error: ValidationError) -> str:
    """Return the first problem of a validation error as one line: the field, if there is one, and what is expected.

    >>> class Size(Value):
    ...     width: int
    >>> try:
    ...     Size.model_validate({"width": "wide"})
    ... except ValidationError as error:
    ...     problem(error)
    'width: Input should be a valid integer, unable to parse string as an integer'
    """
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))

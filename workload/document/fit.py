"""Checks of a query against its model, when the model's input and labels are known."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic_core import PydanticCustomError

from ...bundles.manifest import InputSpec
from ...errors import WorkloadError
from .meant import check_classes, check_normalisation
from .schema import Query

__all__ = ["check_fit"]


def check_fit(query: Query, spec: InputSpec, labels: Sequence[str] | None) -> None:
    """Check that mean and std fit the model's scale, and that the classes to report are among the model's labels.

    Args:
        query: query of the workload.
        spec: input that the model has.
        labels: labels that the model itself gives; None if it gives none.

    Raises:
        WorkloadError: they do not fit.
    """
    given = query.model.input
    try:
        check_normalisation(given.mean, given.std, spec.scale)
        if query.classes is not None:
            check_classes(query.classes, query.labels or labels or ())
    except PydanticCustomError as error:
        key = (error.context or {}).get("key")
        field = f"model.input.{key}" if key in ("mean", "std") else key
        raise WorkloadError(f"query {query.name}: {field}: {error.message()}") from error

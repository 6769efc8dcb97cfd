"""Check of a query's settings against its model, once the model's input and labels are known."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic_core import PydanticCustomError

from ...bundles.manifest import InputSpec
from ...errors import WorkloadError
from .meant import check_classes, check_normalisation
from .schema import Query

__all__ = ["check_fit"]


def check_fit(query: Query, spec: InputSpec, labels: Sequence[str] | None) -> None:
    """Check that a query's mean and std fit its model's scale, and that its classes are among the model's labels.

    Args:
        query: query of the workload.
        spec: input of the query's model.
        labels: class names that the model itself carries; None if it carries none.

    Raises:
        WorkloadError: a setting does not fit the model.
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

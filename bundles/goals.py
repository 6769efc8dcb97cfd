"""Goals of plans: what the user wants of a workload, and of each query, where not all weights fit into memory."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from .staleness import Staleness
from .value import Value

__all__ = ["OBJECTIVES", "ObjectiveName", "QueryGoals"]

ObjectiveName = Literal["max-min", "sum", "accuracy", "mean-accuracy"]
"""Name of an objective.

``max-min``: the lowest share of all queries, then the second lowest, and so on. ``sum``: frames per second of all
queries. ``accuracy``: the lowest expected accuracy, then the second lowest, and so on. ``mean-accuracy``: the mean of
the expected accuracies.
"""
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)


class QueryGoals(Value):
    """Goals of one query, which plans weigh against those of other queries."""

    sla_ms: Annotated[float, Field(gt=0)] | None = None
    """Milliseconds after a frame's arrival by which a query's result is due; None for the workload's own limit."""
    min_fps: Annotated[float, Field(ge=0)] = 0.0
    """Frames per second that a query must at least answer; this comes before the objective."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Importance of a query, compared with others of the same priority."""
    priority: int = 0
    """Priority of a query: plans serve queries of a higher priority as far as possible before the others."""
    staleness: Staleness | None = None
    """Staleness curve of a query, which objectives about accuracy need; None if it was not measured."""

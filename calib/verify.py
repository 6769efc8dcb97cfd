"""Verification that queries keep their accuracy in lower precision; layers or models stay float32 where needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import onnx_ir as ir

from ..compiler.compile import CompileProgress
from .apply import in_precision
from .measure import Measured
from .ranges import Method
from .record import Calibration, ModelRecord, QueryRecord
from .reuse import FOR_ACCURACY
from .search import Candidate, settle
from .weights import WeightUse

__all__ = ["hold_floors"]


def hold_floors(weights: WeightUse, measured: Measured, method: Method, step: CompileProgress) -> Calibration:
    """Return a calibration with which every query keeps its accuracy floor (the minimum that it must keep).

    A kernel stays float32 if the models that share the kernel would convert it in different ways (precision, or axis
    of the int8 scales), or if a query would otherwise miss its floor. A model that misses a floor even with all its
    layers in float32 stays float32 as a whole.

    Args:
        weights: index of all models' weights, before conversion to lower precision.
        measured: value ranges and accuracy floors of the models, and objects that measure converted models.
        method: name of the method that chose the value ranges.
        step: called with the stage ``judge`` and a line of text for each model that misses a floor.
    """
    records, refused = dict(measured.records), dict(measured.refused)
    while True:
        kept, accuracies = _search(weights, records, measured, step)
        short = next((name for name in records if _falls_short(accuracies[name], measured.floors)), None)
        if short is None:
            break
        # An fp16 model has more than its layers in float16, so it can miss a floor with all layers in float32. Other
        # models may need fewer float32 layers once this model is not converted: the search starts again.
        refused[short] = f"it cannot bear {records.pop(short).precision}, with all layers in float32"
    queries = {
        query: found
        for name, record in records.items()
        for query, found in _query_records(name, weights, record, measured, kept, accuracies[name]).items()
    }
    return Calibration(method=method, models=records, kept=kept, queries=queries, refused=refused)


def _search(
    weights: WeightUse, records: Mapping[str, ModelRecord], measured: Measured, step: CompileProgress
) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Search for the kernels that must stay float32 so that every query keeps its accuracy.

    Returns:
        Two dicts: hash of each kernel that stays float32 -> the reason, and model -> query -> accuracy.
    """
    contested = weights.contested(records)
    candidates = [_candidate(name, weights, record, measured, contested) for name, record in records.items()]
    found, accuracies = settle(candidates, contested.keys(), partial(step, "judge"))
    needed = {}
    for kernel, model in found.items():
        names = sorted(name for name, held in weights.layers[model].items() if held == kernel)
        needed[kernel] = f"{', '.join(names)} of {model}{FOR_ACCURACY}"
    return {**contested, **needed}, accuracies


def _candidate(
    name: str, weights: WeightUse, record: ModelRecord, measured: Measured, contested: Mapping[str, str]
) -> Candidate:
    """Return a model as a candidate for the search for layers that must stay float32.

    Layers whose kernels are in ``contested`` always stay float32.
    """
    graph, judge = weights.graphs[name], measured.judges[name]
    fixed = weights.in_model(name, contested)
    return Candidate(
        name,
        weights.layers[name],
        lambda keep: in_precision(graph, record, fixed | keep),
        judge,
        {each.query.name: measured.floors[each.query.name] for each in judge.queries},
    )


def _falls_short(accuracies: Mapping[str, float], floors: Mapping[str, float]) -> bool:
    """Return whether the accuracy of at least one query is below the floor that the query must keep."""
    return any(accuracy < floors[query] for query, accuracy in accuracies.items())


def _query_records(
    name: str,
    weights: WeightUse,
    record: ModelRecord,
    measured: Measured,
    kept: Mapping[str, str],
    accuracies: Mapping[str, float],
) -> dict[str, QueryRecord]:
    """Return query -> its calibration record, for the queries of one model."""
    original = weights.graphs[name]
    converted = in_precision(original, record, weights.in_model(name, kept))
    return {
        each.query.name: QueryRecord(
            precision=record.precision,
            images=len(each.images),
            labelled=each.labelled,
            fp32=each.accuracy,
            accuracy=accuracies[each.query.name],
            floor=measured.floors[each.query.name],
            fp32_bytes=_weight_bytes(original),
            bytes=_weight_bytes(converted),
        )
        for each in measured.judges[name].queries
    }


def _weight_bytes(graph: ir.Model) -> int:
    """Return the total bytes of all initializers (weights) of a graph."""
    values = (value.const_value for value in graph.graph.initializers.values())
    return sum(value.nbytes for value in values if value is not None)

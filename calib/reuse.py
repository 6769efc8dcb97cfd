"""Pure functions that decide whether an earlier calibration, or only its value ranges, can be used again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import onnx_ir as ir

from ..errors import CalibrationError
from ..workload.document.schema import Workload
from ..workload.models.identity import models_of
from .quantize import observed
from .record import Calibration, LowerPrecision, ModelRecord, QueryRecord
from .request import accuracy_floor
from .weights import WeightUse

__all__ = ["FOR_ACCURACY", "adopt_calibration", "can_reuse_ranges", "graph_digest", "is_unchanged"]

FOR_ACCURACY = " cannot bear it"
"""Text with which the reason for a float32 kernel in calibration.json ends if the kernel stays float32 to keep
accuracy."""


def adopt_calibration(
    given: Calibration,
    weights: WeightUse,
    workload: Workload,
    wanted: Mapping[str, LowerPrecision],
    merged: Mapping[str, float],
) -> Calibration:
    """Return a given calibration, reduced to the models of a workload, without reading any frames.

    Args:
        given: calibration that may have more models than the workload.
        weights: index of all models' weights, before conversion to lower precision.
        workload: queries and their accuracy targets.
        wanted: model -> lower precision that its queries ask for.
        merged: name of each merged query -> its accuracy divided by the accuracy of the original model.

    Raises:
        CalibrationError: the calibration was not made for one of the models, or does not keep a query's target.
    """
    records = {
        name: _record_for(given, name, precision, weights.graphs[name])
        for name, precision in wanted.items()
        if name not in given.refused
    }
    model_of = models_of(workload)
    queries: dict[str, QueryRecord] = {}
    for query in workload.queries:
        if model_of[query.name] not in records:
            continue
        before = given.queries.get(query.name)
        if before is None:
            raise CalibrationError(f"the calibration has no query {query.name}")
        floor = accuracy_floor(query, before.fp32, merged)
        if before.accuracy < floor:
            raise CalibrationError(
                f"query {query.name}: the calibration keeps accuracy {before.accuracy:.2%}; {floor:.2%} is required"
            )
        queries[query.name] = before.model_copy(update={"floor": floor})
    return given.model_copy(
        update={
            "models": records,
            # The workload may have models that the calibration does not know; kernels shared with them are float32 too.
            "kept": {**weights.contested(records), **given.kept},
            "queries": queries,
            "refused": {name: why for name, why in given.refused.items() if name in wanted},
        }
    )


def can_reuse_ranges(earlier: ModelRecord, precision: LowerPrecision, model: str, data: str, graph: ir.Model) -> bool:
    """Return whether the value ranges in an earlier record are valid for a model and its frames as they are now.

    Args:
        earlier: earlier record of a model of the same name.
        precision: precision that is requested for the model now.
        model: digest of the model's float32 graph; see :func:`graph_digest`.
        data: digest of the model's frames and images; see :class:`gemel.calib.judge.Judge`.
        graph: float32 graph of the model.
    """
    return (earlier.precision, earlier.model, earlier.data) == (precision, model, data) and _has_all_ranges(
        earlier, graph
    )


def is_unchanged(
    earlier: Calibration,
    records: Mapping[str, ModelRecord],
    refused: Mapping[str, str],
    floors: Mapping[str, float],
    contested: Mapping[str, str],
) -> bool:
    """Return whether the search for layers that must stay float32 had the same input earlier, and so the same result.

    Args:
        earlier: calibration of an earlier compilation.
        records: model -> its precision and ranges now.
        refused: name of each model that stays float32 now -> the reason.
        floors: query -> accuracy that the query must keep now.
        contested: hash of each shared kernel that models would now convert in different ways -> text that lists these.
    """
    contested_before = {kernel: why for kernel, why in earlier.kept.items() if not why.endswith(FOR_ACCURACY)}
    floors_before = {name: query.floor for name, query in earlier.queries.items()}
    return (earlier.models, earlier.refused, floors_before, contested_before) == (records, refused, floors, contested)


def graph_digest(graph: ir.Model) -> str:
    """Return the SHA-256 of a graph with its weights, in hex."""
    return hashlib.sha256(ir.to_proto(graph).SerializeToString(deterministic=True)).hexdigest()


def _record_for(given: Calibration, name: str, precision: LowerPrecision, graph: ir.Model) -> ModelRecord:
    """Return the calibration record of a model from a given calibration.

    Raises:
        CalibrationError: the calibration has no record of the model in this precision, or the record was made for
            another model of the same name.
    """
    found = given.models.get(name)
    if found is None or found.precision != precision:
        raise CalibrationError(f"the calibration has no model {name} in {precision}")
    if found.model != graph_digest(graph) or not _has_all_ranges(found, graph):
        raise CalibrationError(f"the calibration was made for another model {name}: its weights or layers differ")
    return found


def _has_all_ranges(record: ModelRecord, graph: ir.Model) -> bool:
    """Return whether a calibration record has all value ranges that the conversion of a model's graph needs."""
    return record.precision != "int8" or record.peaks.keys() >= set(observed(graph))

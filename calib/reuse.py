"""Decisions on an earlier calibration: whether ranges or all of it can be used again. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import onnx_ir as ir

from ..errors import CalibrationError
from ..workload.document.schema import Workload
from ..workload.models.factory import models_of
from .quantize import observed
from .record import Calibration, LowerPrecision, ModelRecord, QueryRecord
from .request import accuracy_floor
from .weights import WeightUse

__all__ = ["FOR_ACCURACY", "adopt_calibration", "can_reuse_ranges", "graph_digest", "is_unchanged"]

FOR_ACCURACY = " cannot bear it"
"""Last words of the reason, in calibration.json, of a kernel that is float32 for accuracy; no other reason has them."""


def adopt_calibration(
    given: Calibration,
    weights: WeightUse,
    workload: Workload,
    wanted: Mapping[str, LowerPrecision],
    merged: Mapping[str, float],
) -> Calibration:
    """Return the part of a given calibration that is about the models of a workload, without looking at any frames.

    Args:
        given: a calibration, which may have more models than the workload.
        weights: weights of all models, before conversion.
        workload: queries and their accuracy targets.
        wanted: model -> lower precision that its queries ask for.
        merged: merged query -> its accuracy relative to the original model's.

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
                f"query {query.name}: the calibration keeps {before.accuracy:.2%}, {floor:.2%} are wanted"
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
    """Return whether an earlier record has the ranges of a model.

    Args:
        earlier: the record of a model of the same name.
        precision: the precision that is asked for now.
        model: digest of the model's float32 graph; see :func:`graph_digest`.
        data: digest of its frames and images; see :class:`gemel.calib.judge.Judge`.
        graph: the float32 graph.
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
    """Return whether an earlier search for float32 layers had the same input, and so the same result.

    Args:
        earlier: calibration of an earlier compilation.
        records: model -> its ranges now.
        refused: model that stays float32 -> the reason now.
        floors: query -> accuracy that the query must keep now.
        contested: kernel that models would hold in several forms -> these forms now.
    """
    contested_before = {kernel: why for kernel, why in earlier.kept.items() if not why.endswith(FOR_ACCURACY)}
    floors_before = {name: query.floor for name, query in earlier.queries.items()}
    return (earlier.models, earlier.refused, floors_before, contested_before) == (records, refused, floors, contested)


def graph_digest(graph: ir.Model) -> str:
    """Return the SHA-256 of a graph with its weights."""
    return hashlib.sha256(ir.to_proto(graph).SerializeToString(deterministic=True)).hexdigest()


def _record_for(given: Calibration, name: str, precision: LowerPrecision, graph: ir.Model) -> ModelRecord:
    """Return the record of a model.

    Raises:
        CalibrationError: there is none, or it is of another model of this name.
    """
    found = given.models.get(name)
    if found is None or found.precision != precision:
        raise CalibrationError(f"the calibration has no model {name} in {precision}")
    if found.model != graph_digest(graph) or not _has_all_ranges(found, graph):
        raise CalibrationError(f"the calibration was made for another model {name}: its weights or layers differ")
    return found


def _has_all_ranges(record: ModelRecord, graph: ir.Model) -> bool:
    """Return whether a record has all ranges that converting a graph needs."""
    return record.precision != "int8" or record.peaks.keys() >= set(observed(graph))

"""Make the models of a workload narrower where that is asked for: calibrate, find what cannot bear it, report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial

import onnx_ir as ir

from ..bundles.manifest import Precision
from ..compiler.lowering.lower import Lowered
from ..errors import CalibrationError
from ..workload.document.schema import Query, Workload
from ..workload.models.factory import models_of
from .fp16 import to_fp16
from .judge import Judge, judges_of
from .latency import cpu_latencies
from .opset import raised
from .quantize import observed, quantize
from .ranges import Method, peaks_of, too_large
from .record import CALIBRATION, Calibration, ModelRecord, QueryRecord
from .search import Candidate, settle
from .weights import WeightUse

__all__ = ["Narrowed", "PrecisionSettings", "narrow", "precisions_of"]

_LEAST = 0.99
"""Of its float32 accuracy, what a query keeps also where its target would allow less."""

_LEAST_PART = 0.01
"""What a merged query has of its original accuracy: nothing is divided by less."""
_WEAK = " cannot bear it"
"""Behind the name of the model for which a kernel was kept."""
_NAMED = 4
"""Layers that are named where it is said which stay float32; calibration.json has all."""

PrecisionProgress = Callable[[str, str], None]
"""Told of a finished stage: its name, and what it did."""


@dataclass(frozen=True)
class PrecisionSettings:
    """How models are made narrower."""

    precision: Precision = "fp32"
    """Of queries that do not say it themselves."""
    method: Method = "percentile"
    known: Calibration | None = None
    """An earlier one. Where its models and frames are these, its ranges and layers are used again."""
    blind: bool = False
    """``known`` is used without frames to calibrate on or to judge by."""
    merged: Mapping[str, float] = field(default_factory=dict)
    """Of each query that was merged, its accuracy relative to the original model's."""


@dataclass(frozen=True)
class Narrowed:
    """What came of it."""

    record: Calibration
    times: Mapping[str, tuple[float, float]]
    """Milliseconds that int8 models run on this CPU, in float32 and packed; see :mod:`.latency`."""


def precisions_of(workload: Workload, default: Precision) -> dict[str, Precision]:
    """What is asked for, model by model. A model with several queries is as precise as the most exacting wants it."""
    order: tuple[Precision, ...] = ("int8", "fp16", "fp32")
    found: dict[str, Precision] = {}
    model_of = models_of(workload)
    for query in workload.queries:
        name, wanted = model_of[query.name], query.precision or default
        found[name] = max(found.get(name, wanted), wanted, key=order.index)
    return found


def narrow(
    models: Sequence[Lowered],
    workload: Workload,
    settings: PrecisionSettings,
    told: PrecisionProgress = lambda name, what: None,
) -> Narrowed | None:
    """Make models narrower, in place, as precisely as their queries ask for.

    Kernels that several models share stay one tensor: where one of these models wants it in another form, or cannot
    bear it narrower, it stays float32 in all of them.

    Args:
        models: every distinct model, passes done.
        workload: which they are from.
        settings: what is wanted.
        told: told of each stage.

    Returns:
        What was found; None where nothing is to be narrower.

    Raises:
        DataError: a query has no images to calibrate on and to judge by.
        CompileError: a graph from an ONNX file whose operators are too old.
        CalibrationError: its frames do not fit; or ``known``, to be used without frames, is of other models, or does
            not keep the targets of today.
    """
    wanted = precisions_of(workload, settings.precision)
    chosen = {model.name: model for model in models if wanted[model.name] != "fp32"}
    if not chosen:
        return None
    for model in chosen.values():
        model.stages["main"] = raised(_main(model))
    weights = WeightUse(models)
    if settings.known is not None and settings.blind:
        record = _checked(settings.known, weights, workload, wanted, settings)
    else:
        record = _calibrate(weights, workload, wanted, settings, told)
    times: dict[str, tuple[float, float]] = {}
    for name, found in record.models.items():
        model, original = chosen[name], _main(chosen[name])
        layers, keep = weights.layers[name], weights.in_model(name, record.kept)
        model.stages["main"] = _narrowed(original, found, frozenset(), keep)
        model.precision = found.precision
        if found.precision == "int8":
            times[name] = cpu_latencies(original, _main(model))
        left = sorted(keep & layers.keys())
        which = f": {', '.join(left[:_NAMED])}{', ...' if len(left) > _NAMED else ''}" if left else ""
        told("narrow", f"{name}: {found.precision}, {len(left)} of {len(layers)} layers stay float32{which}")
    for name, reason in record.refused.items():
        told("narrow", f"{name}: stays float32: {reason}")
    return Narrowed(record, times)


def _checked(
    known: Calibration,
    weights: WeightUse,
    workload: Workload,
    wanted: Mapping[str, Precision],
    settings: PrecisionSettings,
) -> Calibration:
    """A calibration that was made for these models; what it says of others is left out.

    Raises:
        CalibrationError: naming a model that it was not made for, or a query whose target it does not keep.
    """
    records: dict[str, ModelRecord] = {}
    for name, graph in weights.graphs.items():
        if wanted[name] == "fp32" or name in known.refused:
            continue
        found = known.models.get(name)
        if found is None or found.precision != wanted[name]:
            raise CalibrationError(f"the calibration has no model {name} in {wanted[name]}")
        if found.model != _digest(graph) or not _is_whole(found, graph):
            raise CalibrationError(f"the calibration was made for another model {name}: its weights or layers differ")
        records[name] = found
    queries: dict[str, QueryRecord] = {}
    model_of = models_of(workload)
    for query in workload.queries:
        if model_of[query.name] not in records:
            continue
        before = known.queries.get(query.name)
        if before is None:
            raise CalibrationError(f"the calibration has no query {query.name}")
        floor = _floor(query, before.fp32, settings)
        if before.accuracy < floor:
            raise CalibrationError(
                f"query {query.name}: the calibration keeps {before.accuracy:.2%}, {floor:.2%} are wanted"
            )
        queries[query.name] = before.model_copy(update={"floor": floor})
    return known.model_copy(
        update={
            "models": records,
            # What these models share with one that the calibration does not know.
            "kept": {**weights.contested(records), **known.kept},
            "queries": queries,
            "refused": {name: why for name, why in known.refused.items() if wanted.get(name, "fp32") != "fp32"},
        }
    )


def _calibrate(
    weights: WeightUse,
    workload: Workload,
    wanted: Mapping[str, Precision],
    settings: PrecisionSettings,
    told: PrecisionProgress,
) -> Calibration:
    originals = {name: graph for name, graph in weights.graphs.items() if wanted[name] != "fp32"}
    refused = {name: "it is quantised already" for name, graph in originals.items() if _is_quantised(graph)}
    originals = {name: graph for name, graph in originals.items() if name not in refused}
    judges, records = dict[str, Judge](), dict[str, ModelRecord]()
    known = settings.known if settings.known is not None and settings.known.method == settings.method else None
    for name, judge in judges_of(workload, originals, refused):
        judges[name] = judge
        old = known.models.get(name) if known is not None else None
        records[name] = _recorded(originals[name], wanted[name], judge, settings.method, old)
        if wanted[name] == "int8":
            new = f"{settings.method} of {len(judge.frames)} frames"
            told("ranges", f"{name}: {f'those of {CALIBRATION}' if records[name] is old else new}")
        elif records[name].peaks:
            told("ranges", f"{name}: {len(records[name].peaks)} values are too large for float16")
    floors = {
        each.query.name: _floor(each.query, each.accuracy, settings)
        for judge in judges.values()
        for each in judge.queries
    }
    if (
        known is not None
        and known.models == records
        and known.refused == refused
        and {name: query.floor for name, query in known.queries.items()} == floors
        and _contested_in(known) == weights.contested(records)
    ):
        return known
    while True:
        kept, accuracies = _settled(weights, records, judges, floors, told)
        short = next((name for name in records for query in _short(accuracies[name], floors)), None)
        if short is None:
            break
        # What is no layer is narrow in float16, too. Without it others may do with less in float32.
        refused[short] = f"it cannot bear {records.pop(short).precision}, with all layers in float32"
    queries = {}
    for name, record in records.items():
        graph = _narrowed(originals[name], record, frozenset(), weights.in_model(name, kept))
        for each in judges[name].queries:
            queries[each.query.name] = QueryRecord(
                precision=record.precision,
                images=len(each.images),
                labelled=each.labelled,
                fp32=each.accuracy,
                accuracy=accuracies[name][each.query.name],
                floor=floors[each.query.name],
                fp32_bytes=_bytes(originals[name]),
                bytes=_bytes(graph),
            )
    return Calibration(method=settings.method, models=records, kept=kept, queries=queries, refused=refused)


def _settled(
    weights: WeightUse,
    records: Mapping[str, ModelRecord],
    judges: Mapping[str, Judge],
    floors: Mapping[str, float],
    told: PrecisionProgress,
) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Tensors that stay float32, by hash, with the reason; and what accuracies that gives, model by model."""
    contested = weights.contested(records)
    candidates = [
        Candidate(
            name,
            weights.layers[name],
            partial(_narrowed, weights.graphs[name], record, weights.in_model(name, contested)),
            judges[name],
            {each.query.name: floors[each.query.name] for each in judges[name].queries},
        )
        for name, record in records.items()
    ]
    found, accuracies = settle(candidates, set(contested), partial(told, "judge"))
    weak = {}
    for kernel, model in found.items():
        names = sorted(name for name, held in weights.layers[model].items() if held == kernel)
        weak[kernel] = f"{', '.join(names)} of {model}{_WEAK}"
    return {**contested, **weak}, accuracies


def _short(accuracies: Mapping[str, float], floors: Mapping[str, float]) -> list[str]:
    return [query for query, accuracy in accuracies.items() if accuracy < floors[query]]


def _floor(query: Query, fp32: float, settings: PrecisionSettings) -> float:
    """The accuracy that a query must keep, of what it has in float32."""
    reached = max(settings.merged.get(query.name, 1.0), _LEAST_PART)
    return fp32 * max(_LEAST, min(1.0, query.target / reached))


def _recorded(
    graph: ir.Model, precision: Precision, judge: Judge, method: Method, old: ModelRecord | None
) -> ModelRecord:
    """What a model is made narrower by: ``old``, if that was found for the same model and frames."""
    assert precision != "fp32"
    digest = _digest(graph)
    same = old is not None and (old.precision, old.model, old.data) == (precision, digest, judge.digest)
    if old is not None and same and _is_whole(old, graph):
        return old
    if precision == "int8":
        peaks = peaks_of(graph, observed(graph), judge.frames, method)
    else:
        peaks = too_large(graph, judge.frames)
    return ModelRecord(precision=precision, model=digest, data=judge.digest, frames=len(judge.frames), peaks=peaks)


def _is_whole(record: ModelRecord, graph: ir.Model) -> bool:
    """Whether it has all ranges that the graph needs."""
    return record.precision != "int8" or record.peaks.keys() >= set(observed(graph))


def _is_quantised(graph: ir.Model) -> bool:
    return any("QuantizeLinear" in node.op_type or node.op_type == "DequantizeLinear" for node in graph.graph)


def _contested_in(known: Calibration) -> dict[str, str]:
    """What an earlier :meth:`Weights.contested` found."""
    return {kernel: why for kernel, why in known.kept.items() if not why.endswith(_WEAK)}


def _digest(graph: ir.Model) -> str:
    return hashlib.sha256(ir.to_proto(graph).SerializeToString(deterministic=True)).hexdigest()


def _bytes(graph: ir.Model) -> int:
    values = (value.const_value for value in graph.graph.initializers.values())
    return sum(value.nbytes for value in values if value is not None)


def _main(model: Lowered) -> ir.Model:
    return model.stages["main"]


def _narrowed(graph: ir.Model, record: ModelRecord, fixed: Set[str], keep: Set[str]) -> ir.Model:
    """A graph made narrower, all but the tensors in ``fixed`` and ``keep``."""
    if record.precision == "fp16":
        return to_fp16(graph, fixed | keep, record.peaks)
    made = graph.clone()
    quantize(made, record.peaks, fixed | keep)
    return made

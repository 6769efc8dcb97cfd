"""Make the models of a workload narrower where that is asked for: calibrate, find what cannot bear it, report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial

import onnx_ir as ir

from ..compiler.lower import Lowered
from ..compiler.sharing import Use, kernels
from ..errors import CalibrationError
from ..runtime.manifest import Precision
from ..workload.models import models_of
from ..workload.schema import Workload
from .half import halve
from .judge import Judge, judges_of
from .latency import latency
from .opset import raised
from .quantize import layers_of, observed, quantize
from .ranges import Method, peaks_of
from .record import CALIBRATION, Calibration, ModelRecord, QueryRecord
from .search import Candidate, settle

__all__ = ["Narrowed", "Settings", "narrow", "precisions_of"]

_LEAST = 0.99
"""Of its float32 accuracy, what a query keeps also where its target would allow less."""

_LEAST_PART = 0.01
"""What a merged query has of its original accuracy: nothing is divided by less."""
_WEAK = " cannot bear it"
"""Behind the name of the model for which a kernel was kept."""

Told = Callable[[str, str], None]
"""Told of a finished stage: its name, and what it did."""


@dataclass(frozen=True)
class Settings:
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
    settings: Settings,
    told: Told = lambda name, what: None,
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
        CalibrationError: its frames do not fit; or ``known``, to be used without frames, is of other models.
    """
    wanted = precisions_of(workload, settings.precision)
    chosen = {model.name: model for model in models if wanted[model.name] != "fp32"}
    if not chosen:
        return None
    for model in chosen.values():
        model.stages["main"] = raised(_main(model))
    if settings.known is not None and settings.blind:
        record = _checked(settings.known, models, workload, wanted)
    else:
        record = _calibrate(models, workload, wanted, settings, told)
    layers, held = _layers(models), _held(models)
    times: dict[str, tuple[float, float]] = {}
    for name, found in record.models.items():
        model, original = chosen[name], _main(chosen[name])
        keep = {tensor for tensor, kernel in held[name].items() if kernel in record.kept}
        model.stages["main"] = _narrowed(original, found, frozenset(), keep)
        model.precision = found.precision
        if found.precision == "int8":
            times[name] = latency(original, _main(model))
        count = len(keep & layers[name].keys())
        told("narrow", f"{name}: {found.precision}, {count} of {len(layers[name])} layers stay float32")
    for name, reason in record.refused.items():
        told("narrow", f"{name}: stays float32: {reason}")
    return Narrowed(record, times)


def _checked(
    known: Calibration, models: Sequence[Lowered], workload: Workload, wanted: Mapping[str, Precision]
) -> Calibration:
    """A calibration that was made for these models; what it says of others is left out.

    Raises:
        CalibrationError: naming a model that it was not made for.
    """
    records: dict[str, ModelRecord] = {}
    for model in models:
        name = model.name
        if wanted[name] == "fp32" or name in known.refused:
            continue
        found = known.models.get(name)
        if found is None or found.precision != wanted[name]:
            raise CalibrationError(f"the calibration has no model {name} in {wanted[name]}")
        if found.model != _digest(_main(model)):
            raise CalibrationError(f"the calibration was made for another model {name}: its weights or layers differ")
        records[name] = found
    queries = {query.name for query in workload.queries}
    return known.model_copy(
        update={
            "models": records,
            # What these models share with one that the calibration does not know.
            "kept": {**_contested(models, records), **known.kept},
            "queries": {name: query for name, query in known.queries.items() if name in queries},
            "refused": {name: why for name, why in known.refused.items() if wanted.get(name, "fp32") != "fp32"},
        }
    )


def _calibrate(
    models: Sequence[Lowered], workload: Workload, wanted: Mapping[str, Precision], settings: Settings, told: Told
) -> Calibration:
    originals = {model.name: _main(model) for model in models if wanted[model.name] != "fp32"}
    refused: dict[str, str] = {}
    judges, records = dict[str, Judge](), dict[str, ModelRecord]()
    known = settings.known if settings.known is not None and settings.known.method == settings.method else None
    for name, judge in judges_of(workload, originals, refused):
        judges[name] = judge
        old = known.models.get(name) if known is not None else None
        records[name] = _recorded(originals[name], wanted[name], judge, settings.method, old)
        if wanted[name] == "int8":
            new = f"{settings.method} of {len(judge.frames)} frames"
            told("ranges", f"{name}: {f'those of {CALIBRATION}' if records[name] is old else new}")
    contested = _contested(models, records)
    layers, held = _layers(models), _held(models)
    floors = {
        each.query.name: each.accuracy
        * max(_LEAST, min(1.0, each.query.target / max(settings.merged.get(each.query.name, 1.0), _LEAST_PART)))
        for judge in judges.values()
        for each in judge.queries
    }
    if (
        known is not None
        and (known.models, known.refused) == (records, refused)
        and {name: query.floor for name, query in known.queries.items()} == floors
        and _contested_in(known) == contested
    ):
        return known
    candidates = [
        Candidate(
            name,
            layers[name],
            partial(
                _narrowed, originals[name], record, {tensor for tensor in held[name] if held[name][tensor] in contested}
            ),
            judges[name],
            {each.query.name: floors[each.query.name] for each in judges[name].queries},
        )
        for name, record in records.items()
    ]
    found, accuracies = settle(candidates, set(contested), partial(told, "judge"))
    kept = {**contested, **{kernel: f"{model}{_WEAK}" for kernel, model in found.items()}}
    queries = {}
    for candidate in candidates:
        judge, graph = judges[candidate.name], candidate.without(kept.keys())
        original, record = originals[candidate.name], records[candidate.name]
        for each in judge.queries:
            name = each.query.name
            queries[name] = QueryRecord(
                precision=record.precision,
                images=len(each.images),
                labelled=each.labelled,
                fp32=each.accuracy,
                accuracy=accuracies[candidate.name][name],
                floor=floors[name],
                fp32_bytes=_bytes(original),
                bytes=_bytes(graph),
            )
    return Calibration(method=settings.method, models=records, kept=kept, queries=queries, refused=refused)


def _recorded(
    graph: ir.Model, precision: Precision, judge: Judge, method: Method, old: ModelRecord | None
) -> ModelRecord:
    """What a model is made narrower by: ``old``, if that was found for the same model and frames."""
    assert precision != "fp32"
    digest = _digest(graph)
    if old is not None and (old.precision, old.model, old.data) == (precision, digest, judge.digest):
        return old
    peaks = peaks_of(graph, observed(graph), judge.frames, method) if precision == "int8" else {}
    return ModelRecord(precision=precision, model=digest, data=judge.digest, frames=len(judge.frames), peaks=peaks)


def _contested(models: Sequence[Lowered], records: Mapping[str, ModelRecord]) -> dict[str, str]:
    """Tensors that would be there in several forms, by hash, and why."""
    axis_of = {
        (model.name, "main", layer.name): layer.axis
        for model in models
        if model.name in records
        for layer in layers_of(_main(model))
    }

    def form(use: Use) -> tuple[Precision, int | None]:
        precision = records[use[0]].precision if use[0] in records and use[1] == "main" else "fp32"
        if precision == "int8":
            # Rounded channel by channel, along one axis or the other; what is no layer is not rounded.
            return ("int8", axis_of[use]) if use in axis_of else ("fp32", None)
        return precision, None

    found = {}
    for kernel, uses in kernels(models).items():
        forms = {form(use): use[0] for use in uses}
        if len(forms) > 1:
            found[kernel] = ", ".join(sorted(f"{precision} in {name}" for (precision, _), name in forms.items()))
    return found


def _contested_in(known: Calibration) -> dict[str, str]:
    """What an earlier :func:`_contested` found."""
    return {kernel: why for kernel, why in known.kept.items() if not why.endswith(_WEAK)}


def _digest(graph: ir.Model) -> str:
    return hashlib.sha256(ir.to_proto(graph).SerializeToString(deterministic=True)).hexdigest()


def _bytes(graph: ir.Model) -> int:
    values = (value.const_value for value in graph.graph.initializers.values())
    return sum(value.nbytes for value in values if value is not None)


def _main(model: Lowered) -> ir.Model:
    return model.stages["main"]


def _held(models: Sequence[Lowered]) -> dict[str, dict[str, str]]:
    """Of each model, its tensors of two or more dimensions by name, and their hashes."""
    found: dict[str, dict[str, str]] = {model.name: {} for model in models}
    for tensor, uses in kernels(models).items():
        for model, stage, name in uses:
            if stage == "main":
                found[model][name] = tensor
    return found


def _layers(models: Sequence[Lowered]) -> dict[str, dict[str, str]]:
    """Of each model, its layers by name and the kernels that they hold, by hash."""
    held = _held(models)
    return {
        model.name: {layer.name: held[model.name][layer.name] for layer in layers_of(_main(model))} for model in models
    }


def _narrowed(graph: ir.Model, record: ModelRecord, fixed: Set[str], keep: Set[str]) -> ir.Model:
    """A graph made narrower, all but the tensors in ``fixed`` and ``keep``."""
    if record.precision == "fp16":
        return halve(graph, fixed | keep)
    made = graph.clone()
    quantize(made, record.peaks, fixed | keep)
    return made

"""Compilation of a workload into a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bundles.decode_specs import DecodeSpec
from ..bundles.manifest import Manifest
from ..bundles.merge_report import MERGE_REPORT
from ..errors import WorkloadError
from ..workload.document.schema import Query, Workload
from ..workload.models.factory import models_of
from .lowering.lower import Lowered, lower
from .passes import choose_batch_norm, fold
from .writing.merged import Account, account, find_merged, locate_shared
from .writing.output import replacing
from .writing.sharing import SharedBytes, kernels, prove
from .writing.writer import write_bundle

__all__ = ["CompileProgress", "ConvertPrecision", "Report", "compile_workload"]

CompileProgress = Callable[[str, str], None]
"""Function that is told of each finished stage: its name, and what it did."""
ConvertPrecision = Callable[[Sequence[Lowered], CompileProgress], Mapping[str, bytes]]
"""Function that converts models to lower precision, in place; returns name -> content of files for the bundle."""


@dataclass(frozen=True)
class Report:
    """Result of a compilation."""

    path: Path
    """Folder of the bundle."""
    manifest: Manifest
    shared: SharedBytes
    """Bytes that sharing frees, as proved after all passes."""
    merged: Account | None = None
    """Bytes that the merge frees in the bundle; None if no merge wrote the workload."""


def compile_workload(
    workload: Workload,
    output: str | Path,
    step: CompileProgress = lambda name, what: None,
    convert: ConvertPrecision = lambda models, step: {},
) -> Report:
    """Compile every model of a workload into a bundle.

    The bundle is written beside ``output`` and renamed when it is whole; an older bundle is replaced. If a merge wrote
    the workload, the weights are compared with its merge.json, which becomes part of the bundle.

    Args:
        workload: workload to compile.
        output: folder of the bundle.
        step: called after each stage.
        convert: converts models to lower precision after all passes, see :mod:`gemel.calib`; the compiler proves again
            afterwards that what was shared is still shared.

    Raises:
        InputError: a model, a weight file, merge.json or the output folder cannot be used.
        CompileError: a model cannot be exported, or sharing would be lost.
    """
    output = Path(output)
    with replacing(output) as work:
        model_of = models_of(workload)
        merged = find_merged(workload, model_of)
        models = _lower_all(workload, model_of, step)
        before = kernels(models)
        places = locate_shared(merged, before, models) if merged is not None else ()
        choice = choose_batch_norm(graph for model in models for graph in model.stages.values())
        for model in models:
            for graph in model.stages.values():
                fold(graph, choice.keep)
        shared = prove(models, before, choice.waived)
        apart = f"{len(choice.keep)} keep BatchNorm apart"
        step("passes", f"{_mb(shared.bytes)} shared in {shared.groups} tensors, {apart}")
        if shared.waived:
            step("passes", f"{_mb(shared.waived)} not shared: {len(choice.waived)} small kernels run faster folded")
        beside = dict(convert(models, step))
        if any(model.precision != "fp32" for model in models):
            prove(models, before, choice.waived)
        if merged is not None:
            beside[MERGE_REPORT] = merged.content
        content = write_bundle(work, workload, models, model_of, beside)
        kept = account(merged, places, models, content) if merged is not None else None
        if kept is not None:
            step("merge", _describe(kept))
    step("bundle", f"{output}: {_mb(content.files[content.blob].bytes)} in {len(content.tensors)} tensors")
    return Report(output, content, shared, kept)


def _describe(kept: Account) -> str:
    given_up = f" but for {_mb(kept.waived)} in small kernels" if kept.waived else ""
    shared = f"{_mb(kept.shared)} shared in {kept.tensors} tensors as {MERGE_REPORT} says{given_up}"
    if kept.unique == kept.reported:
        return f"{shared}; weights of {kept.unique} bytes, as it says"
    return f"{shared}; weights of {kept.unique} bytes, it says {kept.reported}"


def _lower_all(workload: Workload, model_of: Mapping[str, str], step: CompileProgress) -> list[Lowered]:
    """Lower every distinct model once, and check the labels of every query against its model."""
    models: dict[str, Lowered] = {}
    for query in workload.queries:
        name = model_of[query.name]
        if name not in models:
            models[name] = lower(query, workload.root)
            nodes = sum(len(graph.graph) for graph in models[name].stages.values())
            step("export", f"{name}: {query.model.factory or query.model.onnx}, {nodes} nodes")
        _check_labels(query, models[name].decode)
    return list(models.values())


def _check_labels(query: Query, decode: DecodeSpec) -> None:
    classes = getattr(decode, "classes", None)
    if query.labels is not None and classes is not None and len(query.labels) != classes:
        raise WorkloadError(
            f"query {query.name}: labels: {len(query.labels)} given ({', '.join(query.labels[:3])}"
            f"{', ...' if len(query.labels) > 3 else ''}); the model has {classes} classes"
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"

"""Compilation of a workload (cameras, queries, models) into a bundle (a folder with graphs, weights and a manifest)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundles.blob import tensor_id
from ..bundles.decode_specs import DecodeSpec
from ..bundles.manifest import Manifest
from ..bundles.merge_report import MERGE_REPORT
from ..bundles.reader import Bundle, open_bundle
from ..bundles.replace_bundle import replacing
from ..errors import WorkloadError
from ..workload.document.fit import check_fit
from ..workload.document.schema import Query, Workload
from ..workload.models.identity import models_of
from .lowering.lower import Lowered, lower
from .passes import choose_batch_norm, fold, name_batch_norms
from .stems import add_stems
from .writing.layer_forms import FormBytes, count_forms, locate_forms, settle_forms, unchanged_forms
from .writing.merged import Account, account, find_merged, locate_shared
from .writing.nearly_equal import NearlyEqual, find_nearly_equal
from .writing.sharing import SharedBytes, kernels, prove
from .writing.writer import write_bundle

if TYPE_CHECKING:
    from .lowering.export_once import KnownGraphs

__all__ = ["CompileProgress", "ConvertPrecision", "FinishBundle", "Report", "compile_workload", "convert_nothing"]

CompileProgress = Callable[[str, str], None]
"""Function called after each stage of a compilation, with the name of the stage and a line about what was done."""
ConvertPrecision = Callable[[Sequence[Lowered], CompileProgress], Mapping[str, bytes]]
"""Function that converts models to lower precision in place, and returns files for the bundle (name -> content)."""
FinishBundle = Callable[[Bundle, Path], Manifest]
"""Function that writes the final bundle, given the compiled one, into an empty folder, and returns its manifest."""


@dataclass(frozen=True)
class Report:
    """Result of compiling a workload: the bundle that was written, and the bytes that sharing saves in it."""

    path: Path
    """Folder of the bundle that was written."""
    manifest: Manifest
    shared: SharedBytes
    """Bytes saved by storing equal weights once, as proved after all graph passes."""
    merged: Account | None = None
    """Bytes that the merge saves in the bundle, and those that merge.json reports; None if no merge wrote the
    workload."""
    forms: FormBytes | None = None
    """Bytes of the layers that are kept as codes; None if there are none."""
    nearly_equal: NearlyEqual | None = None
    """Tensors of different models that differ by rounding only, and so are not shared; None if there are none."""


def convert_nothing(models: Sequence[Lowered], step: CompileProgress) -> Mapping[str, bytes]:
    """Convert no model to lower precision; see :data:`ConvertPrecision`."""
    return {}


def compile_workload(
    workload: Workload,
    output: str | Path,
    step: CompileProgress = lambda name, what: None,
    convert: ConvertPrecision = convert_nothing,
    finish: FinishBundle | None = None,
) -> Report:
    """Compile every model of a workload into a bundle.

    The bundle is written beside ``output`` and renamed when it is whole; an older bundle is replaced. If a merge wrote
    the workload, the weights are compared with its merge.json, which becomes part of the bundle.

    Args:
        workload: workload to compile.
        output: folder of the bundle.
        step: called after each stage with its name and a line about what was done.
        convert: converts models to lower precision after all passes, see :mod:`gemel.calib`; the compiler proves again
            afterwards that what was shared is still shared.
        finish: makes the final bundle of the compiled one, such as with :func:`gemel.bundles.originals.add_originals`.

    Raises:
        InputError: a model, a weight file, merge.json or the output folder cannot be used.
        CompileError: a model cannot be exported, or sharing would be lost.
    """
    output = Path(output)
    with replacing(output) as final:
        # Work folders of killed processes are told by the names in them.
        work = final if finish is None else final.with_name("made")
        work.mkdir(exist_ok=True)
        model_of = models_of(workload)
        merged = find_merged(workload, model_of)
        models = _lower_all(workload, model_of, step)
        for graph in (graph for model in models for graph in model.stages.values()):
            name_batch_norms(graph)
        before = kernels(models)
        places = locate_shared(merged, before, models) if merged is not None else ()
        forms = locate_forms(merged, before, models) if merged is not None else {}
        # A base in codes is no kernel of any layer, so no BatchNorm can be folded into it.
        bases = (tensor_id(form.base) for form in forms.values() if form.base is not None and form.base_bits is None)
        choice = choose_batch_norm((graph for model in models for graph in model.stages.values()), bases)
        for model in models:
            for graph in model.stages.values():
                fold(graph, choice.keep)
        shared = prove(models, before, choice.waived)
        apart = f"{len(choice.keep)} keep BatchNorm apart"
        step("passes", f"{_mb(shared.bytes)} shared in {shared.groups} tensors, {apart}")
        if shared.waived:
            named = f"such as {shared.first_waived[2]} of {shared.first_waived[0]}" if shared.first_waived else ""
            step(
                "passes",
                f"{_mb(shared.waived)} not shared: {len(choice.waived)} small kernels run faster folded, {named}",
            )
        forms, plain = settle_forms(forms, models)
        if plain:
            step("forms", f"{len(plain)} layers are not kept as codes, such as {plain[0][2]} of {plain[0][0]}")
        nearly = find_nearly_equal(models)
        if nearly is not None:
            step("passes", _describe_nearly(nearly))
        beside = dict(convert(models, step))
        if any(model.precision != "fp32" for model in models):
            prove(models, before, choice.waived)
            forms = unchanged_forms(forms, models)
        if merged is not None:
            beside[MERGE_REPORT] = merged.content
        content = write_bundle(work, _with_labels(workload, models, model_of), models, model_of, beside, forms)
        coded = count_forms(len(forms), content) if forms else None
        if coded is not None:
            step("forms", _describe_forms(coded))
        kept = account(merged, places, models, content) if merged is not None else None
        if kept is not None:
            step("merge", _describe(kept))
        content = add_stems(work, content, step)
        if finish is not None:
            content = finish(open_bundle(work), final)
    step("bundle", f"{output}: {_mb(content.files[content.blob].bytes)} in {len(content.tensors)} tensors")
    return Report(output, content, shared, kept, coded, nearly)


def _describe(kept: Account) -> str:
    given_up = f" but for {_mb(kept.waived)} in small kernels" if kept.waived else ""
    shared = f"{_mb(kept.shared)} shared in {kept.tensors} tensors as {MERGE_REPORT} says{given_up}"
    if kept.unique == kept.reported:
        return f"{shared}; weights of {kept.unique} bytes, as it says"
    return f"{shared}; weights of {kept.unique} bytes, it says {kept.reported}"


def _describe_forms(coded: FormBytes) -> str:
    """Return a message about the layers that are kept as codes."""
    beside = f", {_mb(coded.bases)} of them bases" if coded.bases else ""
    return f"{coded.layers} layers of {_mb(coded.plain)} are kept as {_mb(coded.stored)}{beside}"


def _describe_nearly(nearly: NearlyEqual) -> str:
    """Return a message about tensors of different models that are not shared because they were rounded differently."""
    (model, _, name), (other, _, twin) = nearly.first, nearly.twin
    return (
        f"{_mb(nearly.bytes)} in {nearly.tensors} tensors would be shared but for rounding, first {name} of {model} and"
        f" {twin} of {other}: export these models in one way, or give them the weights of one of them"
    )


def _lower_all(workload: Workload, model_of: Mapping[str, str], step: CompileProgress) -> list[Lowered]:
    """Turn every distinct model of a workload into ONNX graphs, and check every query's labels against its model.

    ONNX files come first: their errors show in seconds, while the export of a PyTorch model takes minutes. PyTorch
    models of one architecture are exported once.
    """
    models: dict[str, Lowered] = {}
    known: KnownGraphs = {}
    for query in sorted(workload.queries, key=lambda query: query.model.onnx is None):
        name = model_of[query.name]
        if name == query.name:
            models[name] = lower(query, workload.root, known)
            nodes = sum(len(graph.graph) for graph in models[name].stages.values())
            twin = f", the graph of {models[name].twin} with its own weights" if models[name].twin else ""
            step("export", f"{name}: {query.model.factory or query.model.onnx}, {nodes} nodes{twin}")
            if unused := models[name].unused:
                named = f"{', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}"
                step("export", f"{name}: {len(unused)} parameters reach no used output and are left out: {named}")
    for query in workload.queries:
        model = models[model_of[query.name]]
        _check_labels(query, model.decode)
        check_fit(query, model.input, model.labels)
    return [models[name] for name in dict.fromkeys(model_of.values())]


def _check_labels(query: Query, decode: DecodeSpec) -> None:
    """Check that a query has as many labels as its model has classes.

    Raises:
        WorkloadError: there are more or fewer.
    """
    classes = getattr(decode, "classes", None)
    if query.labels is None or classes is None:
        return
    allowed: tuple[int, ...] = (classes,)
    if decode.kind == "classification" and classes == 1:
        allowed = (1, 2)  # A binary classifier has one score; its labels are that of "yes", or those of "no" and "yes".
    elif decode.kind == "segmentation" and classes > 1:
        allowed = (classes - 1, classes)  # The background needs no label.
    if len(query.labels) not in allowed:
        raise WorkloadError(
            f"query {query.name}: labels: {len(query.labels)} given ({', '.join(query.labels[:3])}"
            f"{', ...' if len(query.labels) > 3 else ''}); the model has {classes} classes"
        )


def _with_labels(workload: Workload, models: Sequence[Lowered], model_of: Mapping[str, str]) -> Workload:
    """Return a copy of a workload in which queries without labels have the class names that their models carry."""
    own = {model.name: model.labels for model in models}

    def labelled(query: Query) -> Query:
        labels = own[model_of[query.name]]
        fits = labels is not None and query.labels is None and query.task not in ("embedding", "raw", "ocr")
        return query.model_copy(update={"labels": list(labels or ())}) if fits else query

    return workload.model_copy(update={"queries": [labelled(query) for query in workload.queries]})


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"

"""The compiler: from a workload to a bundle."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError, WorkloadError
from ..runtime.bundle import MANIFEST
from ..runtime.manifest import DecodeSpec, Manifest
from ..workload.models import identity
from ..workload.schema import Query, Workload
from .lower import Lowered, lower
from .passes import choose, fold
from .sharing import Shared, kernels, prove
from .writer import write

__all__ = ["Report", "Step", "compile_workload"]

Step = Callable[[str, str], None]
"""Told of each finished stage: its name, and what it did."""


@dataclass(frozen=True)
class Report:
    """What was written."""

    path: Path
    manifest: Manifest
    shared: Shared


def compile_workload(workload: Workload, output: Path, step: Step = lambda name, what: None) -> Report:
    """Compile every model of a workload into a bundle.

    The bundle is written beside ``output`` and renamed when it is whole; a bundle that was there is replaced.

    Raises:
        InputError: a model, a weight file or the output folder cannot be used.
        CompileError: a model cannot be exported, or sharing would be lost.
    """
    _check_output(output)
    models, model_of = _lower_all(workload, step)
    before = kernels(models)
    choice = choose(graph for model in models for graph in model.stages.values())
    for model in models:
        for graph in model.stages.values():
            fold(graph, choice.keep)
    shared = prove(models, before, choice.waived)
    step("passes", f"{_mb(shared.bytes)} shared in {shared.groups} tensors, {len(choice.keep)} keep BatchNorm apart")
    if shared.waived:
        step("passes", f"{_mb(shared.waived)} not shared: {len(choice.waived)} small kernels run faster folded")
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    try:
        content = write(work, workload, models, model_of)
        work.chmod(0o755)
        _swap(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    step("bundle", f"{output}: {_mb(content.files[content.blob].bytes)} in {len(content.tensors)} tensors")
    return Report(output, content, shared)


def _lower_all(workload: Workload, step: Step) -> tuple[list[Lowered], dict[str, str]]:
    """Every distinct model once, and which model each query uses."""
    models: list[Lowered] = []
    names: dict[str, str] = {}
    model_of: dict[str, str] = {}
    for query in workload.queries:
        key = identity(query.model, query.task, workload.root)
        if key not in names:
            names[key] = query.name
            models.append(lower(query, workload.root))
            nodes = sum(len(graph.graph) for graph in models[-1].stages.values())
            step("export", f"{query.name}: {query.model.factory or query.model.onnx}, {nodes} nodes")
        model_of[query.name] = names[key]
        _check_labels(query, next(model for model in models if model.name == names[key]).decode)
    return models, model_of


def _check_labels(query: Query, decode: DecodeSpec) -> None:
    classes = getattr(decode, "classes", None)
    if query.labels is not None and classes is not None and len(query.labels) != classes:
        raise WorkloadError(
            f"query {query.name}: labels: {len(query.labels)} given ({', '.join(query.labels[:3])}"
            f"{', ...' if len(query.labels) > 3 else ''}); the model has {classes} classes"
        )
    expected = decode.kind if decode.kind in ("classification", "embedding") else "detection"
    if query.task != expected:
        raise WorkloadError(f"query {query.name}: task: {query.task!r} given; the model does {expected}")


def _check_output(output: Path) -> None:
    if output.exists() and not (output / MANIFEST).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise BundleError(f"{output}: exists and is not a bundle; it is not overwritten")


def _swap(work: Path, output: Path) -> None:
    """Put the finished folder in place; the old bundle is moved away first and removed last."""
    if output.exists():
        old = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-old-"))
        output.replace(old)
        work.rename(output)
        shutil.rmtree(old)
    else:
        work.rename(output)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"

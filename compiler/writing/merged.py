"""Comparison of merge.json with the weights that are compiled and with the bundle that is written."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...bundles.blob import tensor_id
from ...bundles.manifest import Manifest
from ...bundles.merge_report import MERGE_REPORT, MergeReport, SharedTensor, UseReport, read_report
from ...errors import SharingLostError, WorkloadError
from ...workload.document.schema import Workload
from ..lowering.lower import Lowered
from ..passes.edit import constant, constant_id
from .sharing import StageParameter

__all__ = ["Account", "Merged", "Places", "account", "find_merged", "locate_shared"]

Places = Sequence[tuple[SharedTensor, tuple[StageParameter, ...]]]
"""Every shared tensor that merge.json names, with the initializers of the models' graphs that hold the tensor."""


@dataclass(frozen=True)
class Merged:
    """Content of the merge.json in a workload's folder."""

    path: Path
    content: bytes
    report: MergeReport
    onnx: frozenset[str]
    """Names of the workload's queries whose models come from ONNX files."""


@dataclass(frozen=True)
class Account:
    """Bytes that a merge saves in a bundle, compared with what merge.json reports."""

    tensors: int
    """Number of shared tensors in merge.json."""
    shared: int
    """Bytes that the bundle saves by the sharing that merge.json names."""
    waived: int
    """Bytes of merge.json's sharing that are given up, because small kernels run faster with BatchNorm folded in."""
    unique: int
    """Bytes of the distinct tensors of all models that merge.json reports on."""
    reported: int
    """Bytes of all distinct weights after the merge, as merge.json reports them in ``merged_bytes``."""


def find_merged(workload: Workload, model_of: Mapping[str, str]) -> Merged | None:
    """Read the merge.json in a workload's folder; return None if there is none.

    Args:
        workload: workload that a merge may have written.
        model_of: query name -> model name.

    Raises:
        WorkloadError: the file is damaged, or belongs to another workload.
    """
    path = workload.root / MERGE_REPORT
    if not path.exists():
        return None
    report = read_report(path)
    uses = [use for tensor in report.shared for use in tensor.uses]
    for query, entry in report.queries.items():
        if model_of.get(query) != entry.model:
            raise _other_workload(path, workload, f"query {query} with model {entry.model}")
    if strange := [use.query for use in uses if use.query not in model_of.values()]:
        raise _other_workload(path, workload, f"model {strange[0]}")
    if twice := [use for use, count in Counter(uses).items() if count > 1]:
        raise WorkloadError(f"{path}: shared: {twice[0].parameter} of {twice[0].query} is there twice")
    onnx = frozenset(query.name for query in workload.queries if query.model.onnx is not None)
    return Merged(path, path.read_bytes(), report, onnx)


def _other_workload(path: Path, workload: Workload, what: str) -> WorkloadError:
    """Return the error about a merge.json that belongs to another workload."""
    return WorkloadError(
        f"{path}: belongs to another workload: it reports on {what}, which {workload.path.name} does not have; delete"
        " it, or replace it by the merge.json of this workload"
    )


def locate_shared(merged: Merged, held: Mapping[str, Sequence[StageParameter]], models: Iterable[Lowered]) -> Places:
    """Find every shared tensor that merge.json names in the graphs of the compiled models.

    Initializers of a PyTorch model have the names of its weights. An ONNX file may use other names and may hold a
    matrix transposed, so there it is enough that the model holds the tensor.

    Args:
        merged: content of merge.json.
        held: result of :func:`~gemel.compiler.writing.sharing.kernels` before any pass that changes weights.
        models: all models of the workload as graphs.

    Raises:
        SharingLostError: a model holds other weights than merge.json says.
        WorkloadError: a tensor has another size than merge.json says, or fewer initializers hold it.
    """
    by_name = {model.name: model for model in models}
    tensor_of: dict[StageParameter, str] = {}
    called: dict[tuple[str, str], list[StageParameter]] = defaultdict(list)
    holders: dict[tuple[str, str], list[StageParameter]] = defaultdict(list)
    for tensor, uses in held.items():
        for use in uses:
            tensor_of[use] = tensor
            holders[use[0], tensor].append(use)
            if use[0] not in merged.onnx:
                called[use[0], use[2]].append(use)
            elif (array := _array(by_name, use)).ndim == 2:
                holders[use[0], tensor_id(np.ascontiguousarray(array.T))].append(use)
    places = []
    for index, shared in enumerate(merged.report.shared):
        found: dict[StageParameter, None] = {}
        for each in shared.uses:
            named = called[each.query, each.parameter]
            # A weight with two names in a model is exported under one of them: then the tensor itself is looked up.
            here = named or holders[each.query, shared.tensor]
            if not here or any(tensor_of[use] != shared.tensor for use in named):
                raise _differing(merged.path, shared, each)
            found |= dict.fromkeys(here)
        # Only PyTorch models are counted: several layers of an ONNX file may read one initializer.
        reported = sum(each.query not in merged.onnx for each in shared.uses)
        if (count := sum(use[0] not in merged.onnx for use in found)) < reported:
            raise WorkloadError(f"{merged.path}: shared.{index}.uses: {reported}; the models hold it {count} times")
        if (size := _array(by_name, next(iter(found))).nbytes) != shared.bytes:
            raise WorkloadError(f"{merged.path}: shared.{index}.bytes: {shared.bytes}; the tensor has {size}")
        places.append((shared, tuple(found)))
    return places


def _differing(path: Path, tensor: SharedTensor, use: UseReport) -> SharingLostError:
    """Return the error about a model whose weights differ from the tensor that it should share."""
    other = next(each for each in tensor.uses if each != use)
    return SharingLostError(
        f"{path} says that {use.parameter} of {use.query} and {other.parameter} of {other.query} share a tensor; the"
        f" weights of {use.query} differ; run gemel merge --resume"
    )


def account(merged: Merged, places: Places, models: Iterable[Lowered], content: Manifest) -> Account:
    """Count the bytes that a bundle saves by a merge, and prove that the bundle holds every merged weight.

    Args:
        merged: content of merge.json.
        places: result of :func:`locate_shared`.
        models: models after the passes.
        content: manifest of the bundle that was written.

    Raises:
        SharingLostError: the bundle does not hold a merged weight; the message names the weight.
    """
    by_name = {model.name: model for model in models}
    shared = waived = 0
    for tensor, uses in places:
        copies = set()
        for model, stage, name in uses:
            value = by_name[model].stages[stage].graph.initializers[name]
            copies.add(copy := constant_id(value))
            # An array with one element is a constant of the program, not a weight.
            if copy not in content.models[model].stages[stage].weights and constant(value).size > 1:
                raise SharingLostError(f"sharing lost in compilation: {name} of {model} is not in the bundle")
        count = len(copies)
        shared += tensor.bytes * (len(tensor.uses) - count)
        waived += tensor.bytes * (count - 1)
    covered = {entry.model for entry in merged.report.queries.values()}
    unique = sum(
        content.tensors[tensor].length
        for segment in content.segments.values()
        if covered.intersection(segment.models)
        for tensor in segment.tensors
    )
    return Account(len(places), shared, waived, unique, merged.report.merged_bytes)


def _array(models: Mapping[str, Lowered], use: StageParameter) -> NDArray[np.float32]:
    model, stage, name = use
    return constant(models[model].stages[stage].graph.initializers[name])

"""Bases that a workload gives: the weights that its models were fine-tuned from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...errors import InputError
from ...workload.document.paths import locate
from ...workload.document.schema import Query, Workload
from ...workload.models.factory import read_state
from .networks import users_of

__all__ = ["check_bases", "given_bases"]


def check_bases(workload: Workload) -> None:
    """Raise ModelError if a file of a base that a workload gives is missing; the files are not read."""
    for queries in users_of(workload).values():
        if (reference := queries[0].model.base or workload.base) is not None:
            locate(reference, workload.root, f"query {queries[0].name}: base")


def given_bases(
    workload: Workload, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> dict[str, tuple[str, Mapping[str, Tensor]]]:
    """Return model name -> path and state dict of the base that the workload gives for the model.

    The base of the whole workload is for those models that have no base of their own and share a kernel's name and
    shape with it.

    Args:
        workload: the workload.
        shapes: model name -> name in the state dict -> shape, for the kernels of the models to merge.

    Raises:
        ModelError: a file is missing or cannot be read.
        InputError: the base of the workload fits no model.
    """
    found: dict[str, tuple[str, Mapping[str, Tensor]]] = {}
    read: dict[str, Mapping[str, Tensor]] = {}
    fits: set[str] = set()
    for name, queries in users_of(workload).items():
        reference = queries[0].model.base or workload.base
        if reference is None or name not in shapes:
            continue
        if reference not in read:
            read[reference] = _read(reference, queries[0], workload.root)
        if queries[0].model.base is not None or _kernels(read[reference]) & shapes[name].items():
            found[name] = reference, read[reference]
            fits.add(reference)
    if workload.base is not None and workload.base not in fits and shapes:
        raise InputError(f"base: {workload.base} fits no model of the workload: no kernel has the same name and shape")
    return found


def _kernels(state: Mapping[str, Tensor]) -> set[tuple[str, tuple[int, ...]]]:
    """Return the names and shapes of the tensors of a state dict."""
    return {(name, tuple(value.shape)) for name, value in state.items()}


def _read(reference: str, query: Query, root: Path) -> Mapping[str, Tensor]:
    """Read a base in the format of a query's model: a state dict, or an ONNX file.

    Raises:
        ModelError: the file is missing or cannot be read.
    """
    path = locate(reference, root, f"query {query.name}: base")
    if query.model.onnx is None:
        return read_state(path)
    from .onnx_models import cut_onnx

    model = query.model.model_copy(update={"onnx": str(path.resolve())})
    stage = cut_onnx(query.model_copy(update={"model": model}), root).stages["main"].module
    return {name: value.clone() for name, value in stage.model.state_dict().items()}  # type: ignore[union-attr]

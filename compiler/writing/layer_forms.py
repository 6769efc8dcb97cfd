"""Parameters that merge.json keeps as codes: comparison with the models' weights before the passes and after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ...bundles.blob import tensor_id
from ...bundles.codes import BASE_BITS, Bits, indexed_codes, wider_bits
from ...bundles.kernel_forms import KernelForm
from ...bundles.manifest import Manifest
from ...bundles.merge_report import LayerReport
from ...errors import SharingLostError, WorkloadError
from ..lowering.lower import Lowered
from ..passes.edit import constant, constant_id, noted_gain, replace_constant
from .merged import Merged
from .sharing import StageParameter

__all__ = ["FormBytes", "LayerForms", "count_forms", "locate_forms", "settle_forms", "unchanged_forms"]

_ROUNDING = 1e-5
"""Largest difference between a kernel that was folded in float64 and one that is multiplied by its gain in float32,
relative to the largest element."""


LayerForms = Mapping[StageParameter, KernelForm]
"""Initializer of a model's graph -> form of its kernel."""


@dataclass(frozen=True)
class FormBytes:
    """Bytes of the layers of a bundle that are kept as codes."""

    layers: int
    """Number of layers."""
    plain: int
    """Bytes of the distinct kernels of these layers in float32."""
    stored: int
    """Bytes of the tensors that the kernels are computed from, each counted once."""
    bases: int
    """Bytes of the bases, which are among ``stored``."""


def locate_forms(
    merged: Merged, held: Mapping[str, Sequence[StageParameter]], models: Iterable[Lowered]
) -> dict[StageParameter, KernelForm]:
    """Find every parameter that merge.json keeps as codes in the graphs of the compiled models, and compare the two.

    Args:
        merged: content of merge.json.
        held: result of :func:`~gemel.compiler.writing.sharing.kernels` before any pass that changes weights.
        models: all models of the workload as graphs.

    Returns:
        Initializer -> its form.

    Raises:
        SharingLostError: a model holds other weights than its codes give; the message names model and parameter.
        WorkloadError: the file of the codes is missing or damaged, or belongs to another workload.
    """
    report = merged.report.forms
    if report is None:
        return {}
    by_name = {model.name: model for model in models}
    if strange := [layer.model for layer in report.layers if layer.model not in by_name]:
        raise WorkloadError(f"{merged.path}: forms: model {strange[0]} is not in the workload")
    if twice := [
        each for each, count in Counter((at.model, at.parameter) for at in report.layers).items() if count > 1
    ]:
        raise WorkloadError(f"{merged.path}: forms: {twice[0][1]} of {twice[0][0]} is there twice")
    path = merged.path.parent / report.file
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise WorkloadError(f"{path}: cannot be read: {error}") from error
    found: dict[StageParameter, KernelForm] = {}
    for layer in report.layers:
        form = _read(path, tensors, layer, held, by_name)
        places = list(_places(layer, form, held, by_name[layer.model]))
        if not places:
            raise SharingLostError(
                f"{merged.path} says that {layer.parameter} of {layer.model} is kept as codes; the weights of"
                f" {layer.model} differ from them; run gemel merge --resume"
            )
        found |= places
    return found


def settle_forms(
    forms: LayerForms, models: Iterable[Lowered]
) -> tuple[dict[StageParameter, KernelForm], list[StageParameter]]:
    """Give each form the gain by which a pass multiplied its kernel, and the graphs the kernels with that gain.

    A folded kernel was rounded once; the kernel of the form is rounded after each operation, and takes its place.

    Args:
        forms: initializer -> its form before the passes.
        models: models after the passes.

    Returns:
        Initializer -> its form now, and the initializers that a pass changed in another way: those are stored as they
        are.
    """
    by_name = {model.name: model for model in models}
    kept: dict[StageParameter, KernelForm] = {}
    given_up: list[StageParameter] = []
    for use, form in forms.items():
        value = _initializer(by_name, use)
        settled = None if value is None else _settled(form, value)
        if settled is None:
            given_up.append(use)
        else:
            kept[use] = settled
    return kept, given_up


def unchanged_forms(forms: LayerForms, models: Iterable[Lowered]) -> dict[StageParameter, KernelForm]:
    """Return the forms whose kernels are as they were settled, in models of full precision.

    A conversion to lower precision stores kernels of its own.
    """
    full = {model.name: model for model in models if model.precision == "fp32"}
    kept = {}
    for use, form in forms.items():
        value = _initializer(full, use) if use[0] in full else None
        if value is not None and constant_id(value) == tensor_id(form.kernel()):
            kept[use] = form
    return kept


def count_forms(layers: int, content: Manifest) -> FormBytes:
    """Count the bytes of a bundle's computed kernels and of the tensors that they are computed from.

    Args:
        layers: number of layers that have such a kernel.
        content: manifest of the bundle.
    """
    forms = content.forms.values()
    stored = {tensor for form in forms for tensor in form.stored}
    bases = {tensor for form in forms for tensor in form.base_parts}
    return FormBytes(layers, *(sum(map(content.bytes_of, each)) for each in (content.forms, stored, bases)))


def _read(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    layer: LayerReport,
    held: Mapping[str, Sequence[StageParameter]],
    models: Mapping[str, Lowered],
) -> KernelForm:
    """Return the form of a parameter.

    Raises:
        WorkloadError: the file lacks a tensor of the form, or the tensor does not fit; the message names both.
    """
    where = f"{path}: {layer.parameter} of {layer.model}"
    codes, bits, scale = _coded(where, tensors, layer.index, layer.bits, layer.shape)
    if [layer.base, layer.base_index].count(None) != (1 if layer.kind == "difference" else 2):
        raise WorkloadError(f"{where}: kind {layer.kind} with base {layer.base} and base_index {layer.base_index}")
    if layer.base_index is not None:
        base_codes, base_bits, base_scale = _coded(where, tensors, layer.base_index, BASE_BITS, layer.shape)
        return KernelForm(codes, bits, scale, base_codes, base_scale, base_bits)
    base = None
    if layer.base is not None:
        base = _base(tensors, layer.base, held, models)
        if base is None or base.dtype != np.float32 or base.shape != layer.shape:
            raise WorkloadError(f"{where}: {layer.base} is missing, or is no float32 array of the shape {layer.shape}")
    return KernelForm(codes, bits, scale, base)


def _coded(
    where: str, tensors: Mapping[str, NDArray[Any]], index: int, bits: Bits, shape: tuple[int, ...]
) -> tuple[NDArray[np.int8], Bits, NDArray[np.float32]]:
    """Return codes in a shape, the number of bits with which they fill whole bytes, and the scale of each channel.

    Args:
        where: file, parameter and model, for error messages.
        tensors: tensors of the file of the forms.
        index: number of the codes in the file.
        bits: number of bits of one code in the file.
        shape: shape of the parameter.

    Raises:
        WorkloadError: the file lacks a tensor, or the tensor does not fit; the message names it.
    """
    try:
        codes, scale = indexed_codes(tensors, index, bits, shape)
    except ValueError as error:
        raise WorkloadError(f"{where}: {error}") from error
    return codes, wider_bits(bits, codes.size), scale


def _base(
    tensors: Mapping[str, NDArray[Any]],
    name: str,
    held: Mapping[str, Sequence[StageParameter]],
    models: Mapping[str, Lowered],
) -> NDArray[Any] | None:
    """Return a base, from the file of the forms or from the model that holds it; None if neither has it."""
    if name in tensors:
        return tensors[name]
    uses = held.get(name.removeprefix("base."), ())
    value = _initializer(models, uses[0]) if uses else None
    return None if value is None else constant(value)


def _places(
    layer: LayerReport, form: KernelForm, held: Mapping[str, Sequence[StageParameter]], model: Lowered
) -> Iterator[tuple[StageParameter, KernelForm]]:
    """Yield the initializers of a model that hold a kernel, and the form of each.

    Initializers of a PyTorch model have the names of its weights. An ONNX file may use other names, and may hold a
    matrix transposed.
    """
    tensor = tensor_id(form.kernel())
    named = [
        (model.name, stage, layer.parameter)
        for stage, graph in model.stages.items()
        if layer.parameter in graph.graph.initializers
    ]
    holders = [use for use in held.get(tensor, ()) if use[0] == model.name]
    if named:
        if set(named) <= set(holders):
            yield from ((use, form) for use in named)
        return
    yield from ((use, form) for use in holders)
    if not holders and form.codes.ndim == 2:
        form = form.transposed()
        yield from ((use, form) for use in held.get(tensor_id(form.kernel()), ()) if use[0] == model.name)


def _initializer(models: Mapping[str, Lowered], use: StageParameter) -> ir.Value | None:
    model, stage, name = use
    return models[model].stages[stage].graph.initializers.get(name)


def _settled(form: KernelForm, value: ir.Value) -> KernelForm | None:
    """Return the form of an initializer as it is after the passes; None if it has none."""
    now, kernel = constant(value), form.kernel()
    if now.shape == kernel.shape and now.tobytes() == kernel.tobytes():
        return form
    gain = noted_gain(value)
    if gain is None or form.block != 1 or now.shape != kernel.shape:
        return None
    factor = gain.astype(np.float32)
    form = replace(form, scale=form.scale * factor) if form.base is None else replace(form, gain=factor)
    kernel = form.kernel()
    if not np.abs(kernel - now).max() <= _ROUNDING * np.abs(now).max():
        return None
    replace_constant(value, kernel)
    return form

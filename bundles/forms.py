"""Kernels that a bundle does not store as they are, but computes from stored tensors when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from .blob import Layout, layout
from .codes import packed_bytes, restore
from .form_specs import FormSpec
from .manifest import Manifest, TensorSpec

__all__ = ["Parts", "check_forms", "compute_kernel", "computed_layout", "form_bytes", "source_segments", "stored_of"]

Parts = Callable[[str], NDArray[Any]]
"""Function that returns the values of a stored tensor, given the tensor's id."""

_MOST_BYTES = 1 << 40
"""Maximum bytes of one computed kernel; no model has a larger one."""


def form_bytes(form: FormSpec) -> int:
    """Return the bytes of the kernel that a form describes."""
    return 4 * prod(form.shape)


def compute_kernel(form: FormSpec, read: Parts, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Compute the kernel of a form, and return it.

    Args:
        form: form of the kernel.
        read: function that returns the stored tensors of the form.
        out: contiguous array to write the kernel into; a new one when left out.
    """
    kernel = np.empty(form.shape, np.float32) if out is None else out
    base, gain = (None if each is None else read(each) for each in (form.base, form.gain))
    restore(kernel, read(form.codes), read(form.scale), form.bits, base=base, gain=gain, block=form.block)
    return kernel


def stored_of(weights: Iterable[str], forms: Mapping[str, FormSpec]) -> Iterator[str]:
    """Yield the ids of the stored tensors that some weights are, or are computed from."""
    for weight in weights:
        yield from forms[weight].stored if weight in forms else (weight,)


def computed_layout(forms: Mapping[str, FormSpec], users: Mapping[str, Iterable[str]]) -> Layout:
    """Return the places of computed kernels in memory of their own, in segments ``d0``, ``d1``, ...

    As in the blob, the kernels that exactly the same models use are one segment.

    Args:
        forms: tensor id -> form of the kernel.
        users: tensor id -> names of the models that use the kernel; kernels without users get no place.
    """
    shapes = {tensor: ("float32", form.shape) for tensor, form in forms.items() if users.get(tensor)}
    return layout(shapes, users, prefix="d")


def source_segments(content: Manifest) -> frozenset[str]:
    """Return the segments of a bundle whose tensors are only there to compute kernels from."""
    sources = {tensor for form in content.forms.values() for tensor in form.stored}
    models = content.models.values()
    sources.difference_update(weight for model in models for stage in model.stages.values() for weight in stage.weights)
    return frozenset(name for name, spec in content.segments.items() if sources.issuperset(spec.tensors))


def check_forms(where: str, forms: Mapping[str, FormSpec], tensors: Mapping[str, TensorSpec]) -> None:
    """Check that the tensors of every form are listed, and have the dtypes and sizes that the kernel needs.

    Args:
        where: path of the file that lists the forms, for error messages.
        forms: tensor id -> form of the kernel.
        tensors: tensor id -> offset, length, dtype and shape, for stored tensors.

    Raises:
        BundleError: a form is wrong; the message names the kernel and the field.
    """
    for name, form in forms.items():
        here, count = f"{where}: forms.{name}", prod(form.shape)
        if name in tensors:
            raise BundleError(f"{here}: the kernel is also stored as a tensor")
        if 4 * count > _MOST_BYTES:
            raise BundleError(f"{here}: shape: {list(form.shape)} is not allowed: at most {_MOST_BYTES} bytes")
        parts = {"codes": form.codes, "scale": form.scale, "base": form.base, "gain": form.gain}
        found = {field: tensors.get(tensor) for field, tensor in parts.items() if tensor is not None}
        for field, spec in found.items():
            if spec is None:
                raise BundleError(f"{here}: {field}: tensor {parts[field]!r} is not listed")
        channels = prod(found["scale"].shape)  # type: ignore[union-attr]
        if not channels or channels % form.block or count % channels:
            raise BundleError(f"{here}: scale: {channels} channels do not fit the shape {list(form.shape)}")
        expected = {
            "codes": ("uint8", packed_bytes(count, form.bits)),
            "scale": ("float32", channels),
            "base": ("float32", count),
            "gain": ("float32", channels),
        }
        for field, spec in found.items():
            assert spec is not None  # the loop above refused those
            if (spec.dtype, prod(spec.shape)) != expected[field]:
                kind, size = expected[field]
                has = f"{spec.dtype}{list(spec.shape)}"
                raise BundleError(f"{here}: {field}: tensor {parts[field]} is {has}, {size} values {kind} are expected")

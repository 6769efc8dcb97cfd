"""Kernels that a bundle does not store as they are, but computes from stored tensors when they are needed."""

from __future__ import annotations

from collections import defaultdict
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

__all__ = ["Parts", "check_forms", "compute_kernel", "computed_layout", "source_segments", "stored_of", "weight_users"]

Parts = Callable[[str], NDArray[Any]]
"""Function that returns the values of a stored tensor, given the tensor's id."""

_MOST_BYTES = 1 << 40
"""Maximum bytes of one computed kernel; no model has a larger one."""


def compute_kernel(form: FormSpec, read: Parts, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Compute the kernel of a form, and return it.

    Args:
        form: form of the kernel.
        read: function that returns the stored tensors of the form.
        out: contiguous array to write the kernel into; a new one when left out.
    """
    kernel = np.empty(form.shape, np.float32) if out is None else out
    base, base_scale, gain = (None if each is None else read(each) for each in (form.base, form.base_scale, form.gain))
    restore(
        *(kernel, read(form.codes), read(form.scale), form.bits),
        base=base,
        base_scale=base_scale,
        base_bits=form.base_bits,
        gain=gain,
        block=form.block,
    )
    return kernel


def stored_of(weights: Iterable[str], forms: Mapping[str, FormSpec]) -> Iterator[str]:
    """Yield the ids of the stored tensors that some weights are, or are computed from."""
    for weight in weights:
        yield from forms[weight].stored if weight in forms else (weight,)


def weight_users(weights: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Return weight -> models that use it.

    Args:
        weights: model -> its weights.
    """
    users: dict[str, set[str]] = defaultdict(set)
    for model, used in weights.items():
        for weight in used:
            users[weight].add(model)
    return users


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
    sources.difference_update(*(model.weights for model in content.models.values()))
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
        if form.bytes > _MOST_BYTES:
            raise BundleError(f"{here}: shape: {list(form.shape)} is not allowed: at most {_MOST_BYTES} bytes")
        if form.base_bits is not None and form.base is None:
            raise BundleError(f"{here}: base_bits: {form.base_bits}, but there is no base")
        if (form.base_bits is None) != (form.base_scale is None):
            given, missing = ("base_scale", "base_bits") if form.base_bits is None else ("base_bits", "base_scale")
            raise BundleError(f"{here}: {missing}: missing, but {given} is given; a base in codes has both")
        order = ("codes", "scale", "base", "base_scale", "gain")
        found = {field: tensors.get(form.parts[field]) for field in order if field in form.parts}
        for field, spec in found.items():
            if spec is None:
                raise BundleError(f"{here}: {field}: tensor {form.parts[field]!r} is not listed")
        channels = prod(found["scale"].shape)  # type: ignore[union-attr]
        if not channels or channels % form.block or count % channels:
            raise BundleError(f"{here}: scale: {channels} channels do not fit the shape {list(form.shape)}")
        expected = {
            "codes": ("uint8", packed_bytes(count, form.bits)),
            "scale": ("float32", channels),
            "base": ("float32", count) if form.base_bits is None else ("uint8", packed_bytes(count, form.base_bits)),
            "base_scale": ("float32", channels),
            "gain": ("float32", channels),
        }
        for field, spec in found.items():
            assert spec is not None  # the loop above refused those
            if (spec.dtype, prod(spec.shape)) != expected[field]:
                (kind, size), tensor = expected[field], form.parts[field]
                has = f"{spec.dtype}{list(spec.shape)}"
                raise BundleError(f"{here}: {field}: tensor {tensor} is {has}, {size} values {kind} are expected")

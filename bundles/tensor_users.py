"""Distinct tensors of a blob that is written, and the models that use each: as it is, or to compute kernels from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from .blob import Layout, layout, tensor_id
from .form_specs import FormSpec
from .kernel_forms import KernelForm
from .manifest import TensorSpec

__all__ = ["TensorUsers"]


class TensorUsers:
    """Shapes and users of the distinct tensors of a blob.

    Args:
        keep: function that keeps the array of a tensor for :func:`.blob.write_blob`, called once for each tensor that
            kernels are computed from, unless it is kept already.
    """

    def __init__(self, keep: Callable[[str, NDArray[Any]], None]) -> None:
        self._keep = keep
        self._shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._users: dict[str, set[str]] = defaultdict(set)
        """Tensor id -> models that use the tensor as it is."""
        self._sources: dict[str, set[str]] = defaultdict(set)
        """Tensor id -> models that have a kernel which is computed from the tensor."""
        self._kernels: dict[str, set[str]] = defaultdict(set)
        """Tensor id of a computed kernel -> models that use the kernel."""
        self._forms: dict[str, FormSpec] = {}

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._shapes

    def add(self, model: str, tensor: str, array: NDArray[Any]) -> None:
        """Note that a model uses a tensor, of which the array is not kept."""
        self._shapes[tensor] = (array.dtype.name, array.shape)
        self._users[tensor].add(model)

    def add_form(self, model: str, kernel: str, form: KernelForm) -> None:
        """Note that a model uses a kernel that is computed from other tensors, and keep these.

        Args:
            model: name of the model.
            kernel: id that the kernel has as a tensor.
            form: form of the kernel.
        """
        self._kernels[kernel].add(model)
        if kernel not in self._forms:
            self._forms[kernel] = form.stored(self._put)
        for tensor in self._forms[kernel].stored:
            self._sources[tensor].add(model)

    def add_stored(
        self, model: str, weight: str, tensors: Mapping[str, TensorSpec], forms: Mapping[str, FormSpec]
    ) -> None:
        """Note that a model uses a weight of a bundle, whose arrays are not kept.

        Args:
            model: name of the model.
            weight: id of a tensor, or of a kernel that is computed.
            tensors: id -> entry, for all stored tensors.
            forms: id -> form, for all kernels that are computed.
        """
        form = forms.get(weight)
        if form is None:
            self._users[weight].add(model)
        else:
            self._kernels[weight].add(model)
            self._forms[weight] = form
        for tensor in (weight,) if form is None else form.stored:
            self._shapes[tensor] = (tensors[tensor].dtype, tensors[tensor].shape)
            if form is not None:
                self._sources[tensor].add(model)

    def forms(self) -> dict[str, FormSpec]:
        """Return tensor id -> form, for the kernels that are not also stored as they are."""
        return {kernel: form for kernel, form in self._forms.items() if kernel not in self._shapes}

    def layout(self) -> Layout:
        """Return the layout of the blob. What is only there to compute kernels from has segments of its own."""
        users = {tensor: self._users.get(tensor, set()) | self._kernels.get(tensor, set()) for tensor in self._shapes}
        every = {tensor: models | self._sources.get(tensor, set()) for tensor, models in users.items()}
        return layout(self._shapes, every, apart={tensor for tensor, models in users.items() if not models})

    def _put(self, array: NDArray[Any]) -> str:
        tensor = tensor_id(array)
        if tensor not in self._shapes:
            self._shapes[tensor] = (array.dtype.name, array.shape)
            self._keep(tensor, array)
        return tensor

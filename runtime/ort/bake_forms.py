"""Forms of kernels in the layout of this CPU: base and codes are re-ordered as ONNX Runtime re-orders the kernel.

ONNX Runtime moves the elements of a kernel and pads it with zeros. To learn where each element goes, the graph is
optimised a second time with numbers in place of the kernels: the bits of every element say which one it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.codes import Bits, unpack_codes, wider_bits
from ...bundles.form_nodes import without_forms
from ...bundles.form_specs import FormSpec
from ...bundles.kernel_forms import KernelForm
from ...bundles.onnx_wire import Message
from ...bundles.program import Program
from ...bundles.reader import Bundle
from .optimise import optimise

__all__ = ["FormBaker"]

_BLOCKS = (1, 8, 16, 4, 32, 64)
"""Numbers of interleaved channels to look for; all channels may be interleaved, too."""
_MOST = 0x7F00_0000
"""Number below which the bits of every number are those of a finite float32."""
_Span = tuple[int, int]
"""First and last number (exclusive) of the elements of a kernel."""
_Numbered = tuple[str, Sequence[NDArray[Any]], Sequence[_Span]]
"""Id of the program of a graph with numbers in place of its kernels, its weights, and the numbers of each kernel."""
_Order = NDArray[np.int64]
"""Index into a kernel of the bundle, for each element of a kernel that was re-ordered; -1 for padding."""


class FormBaker:
    """Forms of the kernels of a bundle's models in the layout of this CPU.

    Args:
        bundle: an open bundle.
        folder: folder for temporary files.
    """

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._bundle, self._folder = bundle, folder
        self._numbers: dict[tuple[Any, ...], _Numbered] = {}
        """Program, and shapes of the kernels among the weights of a stage -> its graph with numbers in their place."""

    def forms(
        self, path: Path, graph: Message, tensors: Mapping[str, str], program: Program, arrays: Sequence[NDArray[Any]]
    ) -> list[KernelForm | None]:
        """Return the form of each weight of an optimised program; None for weights that are stored as they are.

        A kernel that ONNX Runtime changed in another way than by moving its elements is stored as it is.

        Args:
            path: ONNX file of the stage.
            graph: content of the file.
            tensors: initializer name -> id of the weight, for the stage's weights.
            program: the stage's program, optimised for this CPU.
            arrays: weights of that program.
        """
        specs = self._bundle.manifest.forms
        computed = {name: specs[tensor] for name, tensor in tensors.items() if tensor in specs}
        if not computed:
            return [None] * len(arrays)
        # Models with one program may name their kernels differently, but have them in one order.
        shapes = [specs[tensor].shape if tensor in specs else None for tensor in tensors.values()]
        key = (program.id, *shapes)
        if key not in self._numbers:
            self._numbers[key] = self._numbered(path, graph, computed)
        made, numbers, spans = self._numbers[key]
        if made != program.id:
            return [None] * len(arrays)
        ordered = dict(zip(computed, spans, strict=True))
        return [self._form(array, number, computed, ordered) for array, number in zip(arrays, numbers, strict=True)]

    def _numbered(self, path: Path, graph: Message, computed: Mapping[str, FormSpec]) -> _Numbered:
        """Optimise a graph with numbers in place of its kernels."""
        spans: dict[str, _Span] = {}
        first = 1
        for name, form in computed.items():
            count = form.bytes // 4
            # A kernel for which no numbers are left has zeros, and is stored as it is.
            spans[name] = (first, first + count) if first + count < _MOST else (0, 0)
            first = max(first, spans[name][1])

        def numbers(name: str) -> NDArray[np.float32]:
            shape = computed[name].shape
            if spans[name] == (0, 0):
                return np.zeros(shape, np.float32)
            return np.arange(*spans[name], dtype=np.uint32).view(np.float32).reshape(shape)

        proto = without_forms(graph, numbers).SerializeToString()
        program, arrays = optimise(path, proto, self._folder)
        return program.id, arrays, list(spans.values())

    def _form(
        self,
        array: NDArray[Any],
        number: NDArray[Any],
        computed: Mapping[str, FormSpec],
        spans: Mapping[str, _Span],
    ) -> KernelForm | None:
        """Return the form of one weight of an optimised program; None if it is not computed from a form."""
        if array.dtype != np.float32 or not array.size or array.tobytes() == number.tobytes():
            return None
        places = number.reshape(-1).view(np.uint32).astype(np.int64)
        largest = int(places.max())
        name = next((name for name, (first, end) in spans.items() if first <= largest < end), None)
        if name is None:
            return None
        order = np.where(places > 0, places - spans[name][0], -1)
        if order.min() < -1:
            return None
        for form in self._moved(computed[name], order, array.shape):
            # Padding may be a negative zero, which is equal to zero.
            if np.array_equal(form.kernel(), array):
                return form
        return None

    def _moved(self, spec: FormSpec, order: _Order, shape: tuple[int, ...]) -> Iterator[KernelForm]:
        """Yield the form of a kernel whose elements were moved; nothing if channels lie in no regular way."""
        read = self._bundle.tensor
        count, channels = spec.bytes // 4, read(spec.scale).size
        padded = bool((order < 0).any())

        def moved(tensor: str, bits: Bits) -> tuple[NDArray[np.int8], Bits]:
            """Return codes in the new order, and their number of bits: with one bit there is no code for padding."""
            codes = _taken(unpack_codes(read(tensor), bits, count), order).reshape(shape)
            return codes, wider_bits(2 if bits == 1 and padded else bits, order.size)

        codes, bits = moved(spec.codes, spec.bits)
        base, base_bits = None, None
        if spec.base is not None and spec.base_bits is not None:
            base, base_bits = moved(spec.base, spec.base_bits)
        elif spec.base is not None:
            base = _taken(read(spec.base).reshape(-1), order).reshape(shape)
        of = _taken(_channels(count, channels, spec.block).astype(np.int64), order, missing=-1)
        for size, block in _blocks(order.size, channels):
            if ((of < 0) | (of == _channels(order.size, size, block))).all():
                yield KernelForm(
                    codes=codes,
                    bits=bits,
                    scale=_widened(read(spec.scale), size, 0.0),
                    base=base,
                    base_scale=None if spec.base_scale is None else _widened(read(spec.base_scale), size, 0.0),
                    base_bits=base_bits,
                    gain=None if spec.gain is None else _widened(read(spec.gain), size, 1.0),
                    block=block,
                )
                return


def _taken(values: NDArray[Any], order: _Order, missing: int = 0) -> NDArray[Any]:
    """Return elements of a vector in another order, with a value for padding."""
    taken = values[order]
    taken[order < 0] = missing
    return taken


def _channels(count: int, channels: int, block: int) -> NDArray[np.int64]:
    """Return the channel of each of ``count`` elements, if ``block`` channels are interleaved."""
    blocks = np.arange(channels).reshape(-1, 1, block)
    return np.broadcast_to(blocks, (channels // block, count // channels, block)).reshape(-1)


def _blocks(count: int, channels: int) -> Iterator[tuple[int, int]]:
    """Yield numbers of channels, padding included, and of interleaved channels, that a kernel may have."""
    for block in (*_BLOCKS, channels):
        for size in dict.fromkeys(-(-channels // each) * each for each in (1, block)):
            if size % block == 0 and count % size == 0:
                yield size, block


def _widened(values: NDArray[Any], size: int, value: float) -> NDArray[np.float32]:
    """Return a vector of ``size`` elements that begins with ``values`` and goes on with ``value``."""
    return np.concatenate([values.reshape(-1), np.full(size - values.size, value, np.float32)])

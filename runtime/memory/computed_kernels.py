"""Memory of kernels that are computed from other tensors, at addresses that never change.

It has the methods of :class:`.mapped_blob.MappedBlob` that an arena uses: populating a part computes the kernels there,
and dropping a part gives its pages back to the system.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray

from ...bundles.blob import HUGE_PAGE, footprint
from ...bundles.form_specs import FormSpec
from ...bundles.forms import Parts, compute_kernel
from ...bundles.manifest import SegmentSpec, TensorSpec
from ...bundles.reader import view
from .mapped_blob import Span, advise, move_pages, reserved_bytes

__all__ = ["ComputedKernels"]


class ComputedKernels:
    """Segments of kernels that are computed from tensors which have to be in memory meanwhile.

    Args:
        forms: tensor id -> form of the kernel.
        tensors: tensor id -> offset, length and shape of the kernel in this memory.
        segments: segments to make room for.
        read: function that returns the tensors that kernels are computed from.
    """

    stays: ClassVar[bool] = False
    """Whether weights can still be read after their pages are dropped: never."""

    def __init__(
        self,
        forms: Mapping[str, FormSpec],
        tensors: Mapping[str, TensorSpec],
        segments: Iterable[SegmentSpec],
        read: Parts,
    ) -> None:
        specs = list(segments)
        self._forms, self._read = forms, read
        self._members = {spec.offset: {name: tensors[name] for name in spec.tensors} for spec in specs}
        """Offset of a segment -> places of its kernels."""
        self._writable = reserved_bytes(max((spec.offset + footprint(spec.length) for spec in specs), default=0))
        self._bytes = self._writable.view()
        self._bytes.flags.writeable = False
        for spec in specs:
            if spec.length >= HUGE_PAGE:
                # Every load touches all pages for the first time: large ones cost a fraction of that.
                advise(self._bytes[spec.offset : spec.offset + spec.length], mmap.MADV_HUGEPAGE)

    def tensor(self, spec: TensorSpec) -> NDArray[Any]:
        """Return a view of a kernel at its address. The view stays valid, but has zeros while the kernel is dropped."""
        return view(self._bytes, spec)

    def populate(self, spans: Sequence[Span]) -> None:
        """Compute the kernels of whole segments.

        Raises:
            BackendError: a tensor that a kernel is computed from cannot be read.
        """
        for offset, _ in spans:
            for name, spec in self._members[offset].items():
                compute_kernel(self._forms[name], self._read, view(self._writable, spec))

    def hand_over(self, gone: Sequence[Span], coming: Sequence[Span]) -> None:
        """Move the pages of segments that will be dropped to segments that will be computed.

        A fresh page costs more than the values that are computed into it: the system fills it with zeros first.
        """
        for (begin, there), (place, needed) in zip(_longest_first(gone), _longest_first(coming), strict=False):
            size = footprint(min(there, needed))
            move_pages(self._bytes[place : place + size], self._bytes[begin : begin + size])

    def drop(self, spans: Sequence[Span], *, cold: bool = False) -> None:
        """Take parts out of memory. Nothing of them is in the page cache, so ``cold`` changes nothing."""
        for offset, length in spans:
            advise(self._bytes[offset : offset + footprint(length)], mmap.MADV_DONTNEED)

    def discard(self, spans: Sequence[Span]) -> None:
        """Give back parts that nobody reads any more."""
        self.drop(spans)


def _longest_first(spans: Sequence[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: span[1], reverse=True)

"""Host arena: segments of a blob that is mapped into this process (:mod:`.mapped_blob`).

Addresses never change, so weights that are bound to a program stay bound as long as the arena exists, and also in the
arena that takes its place when a run goes on with another bundle: tensors that both bundles have stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ...bundles.blob import PAGE, Layout, footprint
from ...bundles.form_specs import FormSpec
from ...bundles.manifest import SegmentSpec, TensorSpec
from ...errors import BackendError
from .arena import Arena, Ticket
from .computed_kernels import ComputedKernels
from .loading import WARM, Loading
from .mapped_blob import MappedBlob, Span

__all__ = ["HostArena"]


@dataclass(frozen=True, eq=False)
class _Part:
    """Segment, or part of one, whose pages lie in one blob. The arena loads and evicts it as a whole."""

    blob: MappedBlob | ComputedKernels
    spans: tuple[Span, ...]
    """Pages of a segment's part; a page that has tensors of two parts belongs to both."""
    kept: str | None = None
    """Part of the previous arena in which the segment's tensors lie; None if they lie in the arena's own blob."""

    @property
    def bytes(self) -> int:
        """Bytes of memory that the segment, or the part of a segment, takes."""
        return sum(footprint(length) for _, length in self.spans)


class HostArena(Arena):
    """Segments of one blob, mapped into this process.

    Args:
        path: file of the blob, which is mapped read-only.
        tensors: tensor id -> offset, length, dtype and shape of the tensor in the blob.
        segments: segment -> offset, length and tensors of the segment in the blob.
        budget: maximum bytes that may be resident at once; enough for all segments when left out.
        loading: settings of how segments are loaded and evicted.
        before: arena that this one takes the place of in :meth:`take_over`. Tensors that both have stay where they are.
        forms: tensor id -> form, for kernels that are computed from tensors of the blob.
        computed: places of these kernels, in segments of other names than those of the blob.

    Raises:
        BackendError: the kernel refuses to map the blob.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, TensorSpec],
        segments: Mapping[str, SegmentSpec],
        budget: int | None = None,
        loading: Loading = WARM,
        before: HostArena | None = None,
        forms: Mapping[str, FormSpec] | None = None,
        computed: Layout | None = None,
    ) -> None:
        self.blob = MappedBlob(path, segments.values()).hold()
        """Blob that the arena maps itself, besides blobs of earlier arenas whose place it takes."""
        self._parts: dict[str, _Part] = {}
        self.parts_of: dict[str, tuple[str, ...]] = {}
        """Segment -> the parts that it consists of: only itself, unless some tensors lie in an earlier arena's blob."""
        self._places: dict[str, tuple[MappedBlob | ComputedKernels, TensorSpec]] = {}
        """Tensor id -> blob that holds the tensor, and place of the tensor in that blob."""
        self._part_of: dict[str, str] = {}
        """Tensor id -> segment, or part of a segment, that holds the tensor."""
        self._kernels: ComputedKernels | None = None
        for name, spec in segments.items():
            self._split(name, spec, tensors, before)
        sources = self._add_computed(forms or {}, computed) if computed is not None else {}
        if before is not None:
            own = [span for part in self._parts.values() if part.blob is self.blob for span in part.spans]
            self.blob.discard(_without([(spec.offset, spec.length) for spec in segments.values()], own))
        held = {part.blob for part in self._parts.values() if isinstance(part.blob, MappedBlob)} - {self.blob}
        self._earlier = [blob.hold() for blob in held]
        self._waits = before is not None
        """Whether the previous arena is still in use, so that its pages must not be dropped."""
        made = computed.segments if computed is not None else {}
        whole = sum(footprint(spec.length) for spec in (*segments.values(), *made.values()))
        sizes = {name: part.bytes for name, part in self._parts.items()}
        # Pages that count twice are no reason to have less room for weights.
        room = None if budget is None else budget + sum(sizes.values()) - whole
        super().__init__(sizes, room, loading, sources)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the weights that lie in the blobs of earlier arenas."""
        return sum(part.bytes for part in self._parts.values() if part.kept is not None)

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a view of a tensor at its address in the arena.

        The view stays valid when the tensor's segment is evicted, but reading the view is then slow, and gives zeros
        for a kernel that is computed.
        """
        blob, spec = self._places[name]
        return blob.tensor(spec)

    def take_over(self, before: HostArena) -> None:
        """Take the place of the arena that this one was made from. Both must be unused: no model may hold a segment.

        Parts that both have stay in memory as they are. The others of the previous arena are unmapped, and parts that
        do not fit into the budget are dropped. If tensors of one segment are in several parts now, loading one of the
        parts may map pages of the others, which the account does not see.
        """
        before.finish()
        residents = set(before.residents)
        self._waits = False
        self.adopt([name for name, part in self._parts.items() if part.kept in residents])
        kept: dict[MappedBlob | ComputedKernels, list[Span]] = {}
        for part in self._parts.values():
            kept.setdefault(part.blob, []).extend(part.spans)
        for part in before._parts.values():
            left = _without(part.spans, kept.get(part.blob, []))
            part.blob.drop(left, cold=self._loading.cold)
            part.blob.discard(left)

    def acquire(self, segments: Iterable[str]) -> None:
        self._check_files()
        super().acquire(segments)

    def close(self) -> None:
        super().close()
        for blob in (self.blob, *self._earlier):
            blob.close()

    def _work(
        self, evict: Sequence[str], tickets: Mapping[str, Future[None]], sources: Mapping[str, Sequence[Ticket]]
    ) -> None:
        if self._kernels is not None:
            gone, coming = (
                [self._parts[name].spans[0] for name in names if name in self.sources] for names in (evict, tickets)
            )
            self._kernels.hand_over(gone, coming)
        super()._work(evict, tickets, sources)

    def _load(self, segment: str) -> None:
        part = self._parts[segment]
        try:
            if segment in self.sources:
                # Pages of a file that was shortened must not be touched.
                self._check_files()
            part.blob.populate(part.spans)
        except BackendError as error:
            raise BackendError(f"segment {segment}: {error}") from error

    def _drop(self, segment: str) -> None:
        part = self._parts[segment]
        if not (self._waits and part.kept is not None):
            part.blob.drop(part.spans, cold=self._loading.cold)

    def _check_files(self) -> None:
        """Check that no file that weights are mapped from was overwritten.

        Raises:
            BackendError: a file was overwritten.
        """
        for blob in (self.blob, *self._earlier):
            blob.file.check()

    def _add_computed(self, forms: Mapping[str, FormSpec], placed: Layout) -> dict[str, tuple[str, ...]]:
        """Add the segments of computed kernels; return segment -> parts of the segments that it is computed from.

        Kernels of the previous arena are computed again: what they were computed from may be gone.
        """
        self._kernels = kernels = ComputedKernels(forms, placed.tensors, placed.segments.values(), self.tensor)
        sources: dict[str, tuple[str, ...]] = {}
        for name, spec in placed.segments.items():
            self._parts[name] = _Part(kernels, ((spec.offset, spec.length),))
            self._places |= {tensor: (kernels, placed.tensors[tensor]) for tensor in spec.tensors}
            self._part_of |= dict.fromkeys(spec.tensors, name)
            self.parts_of[name] = (name,)
            parts = (self._part_of[each] for tensor in spec.tensors for each in forms[tensor].stored)
            sources[name] = tuple(dict.fromkeys(parts))
        return sources

    def _split(self, name: str, spec: SegmentSpec, tensors: Mapping[str, TensorSpec], before: HostArena | None) -> None:
        """Split a segment into parts: what lies in the arena's own blob, and in each part of the previous arena."""
        groups: dict[str | None, list[str]] = {}
        for tensor in spec.tensors:
            place = None if before is None else before._places.get(tensor)
            stays = place is not None and place[0].stays
            groups.setdefault(before._part_of[tensor] if before is not None and stays else None, []).append(tensor)
        names: list[str] = []
        places: dict[str, tuple[MappedBlob | ComputedKernels, TensorSpec]]
        for kept, members in groups.items():
            if before is None or kept is None:
                whole = len(members) == len(spec.tensors)
                places = {tensor: (self.blob, tensors[tensor]) for tensor in members}
                spans = ((spec.offset, spec.length),) if whole else _pages(tensors[tensor] for tensor in members)
                label, part = name, _Part(self.blob, spans)
            else:
                places = {tensor: before._places[tensor] for tensor in members}
                spans = _pages(place for _, place in places.values())
                label, part = f"{name}-kept-{len(names)}", _Part(before._parts[kept].blob, spans, kept)
            self._parts[label] = part
            self._places |= places
            self._part_of |= dict.fromkeys(members, label)
            names.append(label)
        self.parts_of[name] = tuple(names)


def _pages(tensors: Iterable[TensorSpec]) -> tuple[Span, ...]:
    """Return the spans of whole pages that hold some tensors, joined so that none touch."""
    found: list[list[int]] = []
    for begin, end in sorted((each.offset // PAGE * PAGE, each.offset + each.length) for each in tensors):
        if found and begin <= footprint(found[-1][1]):
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([begin, end])
    return tuple((begin, end - begin) for begin, end in found)


def _without(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """Return the pages of some spans that are in none of the other spans."""
    left = [(begin, begin + footprint(length)) for begin, length in spans]
    for other, length in others:
        first, last = other, other + footprint(length)
        pieces = [((begin, min(end, first)), (max(begin, last), end)) for begin, end in left]
        left = [piece for pair in pieces for piece in pair if piece[0] < piece[1]]
    return [(begin, end - begin) for begin, end in left]

"""Arena: segments in memory under a budget of bytes. A loader thread loads segments before models need them."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic, perf_counter, sleep
from typing import ClassVar

from ...errors import BackendError
from .arena_stats import ArenaStats
from .loading import WARM, Loading
from .residence import Residence, ResidenceState

__all__ = ["Arena", "Ticket"]

Ticket = Future[None] | None
"""Future that says when a segment is loaded; None if the segment is in memory."""


class Arena(ABC):
    """Base class that records which segments are in memory. Their total bytes never exceed the budget.

    One thread calls the methods. Loads and evictions usually run on another thread, the loader, in the order of the
    requests. Every load has a ticket (future that says when the segment is loaded), so that a model waits only for the
    segments that the model needs.
    A segment may be computed from others, its *sources*, which must be in memory while it is loaded.

    Args:
        sizes: segment -> size in bytes.
        budget: maximum bytes that may be resident at once; enough for all segments when left out.
        loading: settings of how segments are loaded and evicted.
        sources: segment that is computed -> segments that it is computed from.
    """

    _inline: ClassVar[bool] = True
    """Whether the calling thread itself does the segment loads that it waits for, if the loader thread is idle."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        budget: int | None = None,
        loading: Loading = WARM,
        sources: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.sizes = dict(sizes)
        """Segment -> size in bytes."""
        self.sources = dict(sources or {})
        """Segment that is computed -> segments that it is computed from."""
        self.budget = sum(self.sizes.values()) if budget is None else budget
        self.stats = ArenaStats()
        self._loading = loading
        self._residences = OrderedDict((name, Residence()) for name in self.sizes)  # least recently used first
        self._loader = ThreadPoolExecutor(1, "gemel-load")
        self._last_job: Future[None] = Future()
        self._last_job.set_result(None)
        self._settled = True
        """Whether all requested segment loads have ended and are recorded. Only the arena's calling thread sets it."""

    @abstractmethod
    def _load(self, segment: str) -> None:
        """Load a segment into memory. Called on the loader thread or on the calling thread."""

    @abstractmethod
    def _drop(self, segment: str) -> None:
        """Free the memory of a segment. Also called for a segment whose load failed."""

    def _kept(self, segment: str) -> bool:
        """Return whether a segment that was loaded and not evicted is still in memory; a failed move may lose it."""
        return True

    @property
    def resident(self) -> int:
        """Bytes of the segments that are resident now, including those that are still loading."""
        return self._bytes_of(self.residents)

    @property
    def residents(self) -> tuple[str, ...]:
        """Segments that are resident now, including those that are still loading; the least recently used first."""
        # A list is made at once: another thread than the arena's own may ask, while the order changes.
        return tuple(name for name, segment in list(self._residences.items()) if segment.occupies)

    def acquire(self, segments: Iterable[str]) -> None:
        """Make segments resident and hold them (keep them from being evicted) until :meth:`release`.

        Raises:
            BackendError: the segments do not fit together with the segments held so far, or one of them cannot be
                loaded. In that case none of them is held; those that were loaded stay resident.
        """
        names = list(segments)
        wanted = [self._residences[name] for name in names]
        self._settle()
        for name, segment in zip(names, wanted, strict=True):
            segment.users += 1
            if segment.occupies:
                self._residences.move_to_end(name)
        missing = [name for name in dict.fromkeys(names) if not self._residences[name].occupies]
        began = perf_counter()
        blocks = any(segment.state is not ResidenceState.RESIDENT for segment in wanted)
        try:
            if missing:
                self._check_sources(missing, ())
                self._transfer(self._room(missing), missing, waits=True)
            for segment in wanted:
                segment.wait()
        except BaseException:
            self.release(names)
            self._settle()
            raise
        self.stats.blocked_s += perf_counter() - began if blocks else 0.0

    def prefetch(self, load: Iterable[str], evict: Iterable[str] = (), done: Callable[[], None] = lambda: None) -> None:
        """Evict and then load segments while the caller goes on; :meth:`acquire` waits for loads that it needs.

        Args:
            load: segments to load; resident ones are left alone.
            evict: segments to evict first; those that are not resident are left alone.
            done: function called without arguments when all loads have ended, usually on the loader thread. Not called
                if nothing has to be loaded.

        Raises:
            BackendError: a model holds a segment to be evicted, the segments to be loaded do not fit, or one of them is
                computed from a segment that would not be in memory. In these cases nothing was evicted or loaded.
        """
        self._settle()
        going = [name for name in dict.fromkeys(evict) if self._residences[name].occupies]
        held = [name for name in going if self._residences[name].users]
        if held:
            raise BackendError(f"arena: segment {held[0]} cannot be dropped while a model holds it")
        missing = [name for name in dict.fromkeys(load) if not self._residences[name].occupies or name in going]
        needed, free = self._bytes_of(missing), self.budget - self.resident + self._bytes_of(going)
        if needed > free:
            raise BackendError(f"arena: {needed} bytes are to be loaded, and {free} of {self.budget} are free")
        self._check_sources(missing, going)
        self._transfer(going, missing, waits=False)
        if missing:
            self._last_job.add_done_callback(lambda _: done())

    def loaded(self, segments: Iterable[str]) -> bool:
        """Return whether a model can use the segments without waiting for a load.

        A segment whose load failed counts as loaded here: :meth:`acquire` loads it again, and raises the error if that
        fails too.
        """
        self._settle()
        return not any(self._residences[name].awaited for name in segments)

    def release(self, segments: Iterable[str]) -> None:
        """Allow segments to be evicted again. The segments stay resident until their memory is needed."""
        for name in segments:
            self._residences[name].users -= 1

    def evict(self) -> None:
        """Evict every segment that no running model holds from memory."""
        self._settle()
        self._transfer(self._idle(), [], waits=True)

    def finish(self) -> None:
        """Wait for all requested loads to end; loads that failed are only recorded."""
        with contextlib.suppress(Exception):
            self._last_job.result()
        self._settle()

    def adopt(self, segments: Iterable[str]) -> None:
        """Note that segments are in memory already, without a load; those that do not fit the budget are evicted."""
        self._settle()
        for name in segments:
            self._residences[name].load().set_result(None)
            self._residences[name].settle()
        over = self.resident - self.budget
        gone: list[str] = []
        for name in self._idle():
            if over > 0:
                gone.append(name)
                over -= self.sizes[name]
        self._transfer(gone, [], waits=True)
        self.stats.peak = max(self.stats.peak, self.resident)

    def close(self) -> None:
        """Wait for all requested loads to end, and stop the loader thread."""
        self._loader.shutdown()

    def _check_sources(self, load: Collection[str], evict: Collection[str]) -> None:
        """Check that what segments are computed from is in memory, or is loaded with them.

        Raises:
            BackendError: a source is missing; the message names it.
        """
        for name in load:
            for source in self.sources.get(name, ()):
                if source not in load and (source in evict or not self._residences[source].occupies):
                    raise BackendError(f"arena: segment {name} is computed from {source}, which is not in memory")

    def _idle(self) -> list[str]:
        return [name for name, segment in self._residences.items() if segment.idle]

    def _bytes_of(self, names: Iterable[str]) -> int:
        return sum(self.sizes[name] for name in names)

    def _room(self, missing: Sequence[str]) -> list[str]:
        """Return the segments to evict so that the segments ``missing`` fit: the least recently used that are not held.

        Raises:
            BackendError: evicting all segments that are not held would not free enough bytes.
        """
        needed, free = self._bytes_of(missing), self.budget - self.resident
        gone: list[str] = []
        for name in self._idle():
            if free >= needed:
                break
            gone.append(name)
            free += self.sizes[name]
        if free < needed:
            raise BackendError(
                f"arena: {needed} bytes are needed, the budget is {self.budget} and {self.resident} are resident"
            )
        return gone

    def _transfer(self, evict: Sequence[str], load: Sequence[str], *, waits: bool) -> None:
        """Evict segments from memory, then load other segments.

        Requests are carried out in the order in which they are made. If a request overtook an earlier one, its segments
        would be in memory together with segments that the earlier request has yet to evict.

        Args:
            evict: segments to evict.
            load: segments to load.
            waits: whether the caller waits for the loads. In that case the calling thread may do them itself.
        """
        if not evict and not load:
            return
        for name in evict:
            self._residences[name].drop()
        # What is computed comes after what it is computed from.
        load = sorted(load, key=self.sources.__contains__)
        tickets = {name: self._residences[name].load() for name in load}
        awaited = {name: [self._residences[each].ticket for each in self.sources.get(name, ())] for name in load}
        for name in load:
            self._residences.move_to_end(name)
        self.stats.evicted += self._bytes_of(evict)
        self.stats.loads += len(load)
        self.stats.loaded += self._bytes_of(load)
        self.stats.peak = max(self.stats.peak, self.resident)
        self._settled = False
        if waits and self._inline and self._last_job.done():
            # Waking a thread would take longer than mapping pages that are in memory.
            self._work(evict, tickets, awaited)
        else:
            self._last_job = self._loader.submit(self._work, evict, tickets, awaited)

    def _settle(self) -> None:
        """Record which segments were loaded, could not be loaded, or were lost since the last call."""
        if self._settled:
            return
        # Read before the segments are checked: what the loader does in between is recorded by the next call.
        done = self._last_job.done()
        for name, segment in self._residences.items():
            segment.settle(kept=self._kept(name))
        self._settled = done

    def _work(
        self, evict: Sequence[str], tickets: Mapping[str, Future[None]], sources: Mapping[str, Sequence[Ticket]]
    ) -> None:
        """Evict segments, then load others. Each one's ticket is done as soon as it is loaded, its sources' before."""
        try:
            for name in evict:
                self._drop(name)
            for name, ticket in tickets.items():
                self._fetch(name, ticket, sources[name])
        except BaseException as error:
            # An interrupt, or an eviction that failed: tickets that nothing will settle must not be waited for.
            for ticket in tickets.values():
                if not ticket.done():
                    ticket.set_exception(error)
            raise

    def _fetch(self, segment: str, ticket: Future[None], sources: Iterable[Ticket]) -> None:
        """Load one segment, no faster than the bandwidth limit, and mark its ticket (future) as done or failed.

        A load error, also that of a source, is stored in the ticket; only an interrupt propagates.
        """
        began = monotonic()
        try:
            for source in filter(None, sources):
                source.result()
            self._load(segment)
            # A limited bandwidth is that of storage, which nothing is computed from.
            if self._loading.bandwidth is not None and segment not in self.sources:
                sleep(max(0.0, began + self.sizes[segment] / self._loading.bandwidth - monotonic()))
            self._loading.watch(segment, began, monotonic())
        except BaseException as error:
            self._drop(segment)
            ticket.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            ticket.set_result(None)

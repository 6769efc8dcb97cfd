"""Arena: segments in memory under a byte budget, loaded ahead by a thread of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic, perf_counter, sleep
from typing import ClassVar

from ...errors import BackendError
from ..trace import Watch, unwatched
from .residence import Residence, ResidenceState

__all__ = ["WARM", "Arena", "ArenaStats", "Loading"]


@dataclass(frozen=True)
class Loading:
    """Settings of how segments are loaded and evicted."""

    cold: bool = False
    """Whether an evicted segment also leaves the page cache, as where memory is short. Then a load reads the disk."""
    bandwidth: float | None = None
    """Bytes per second that a load may not exceed, to imitate a slower device; unlimited when None."""
    watch: Watch = unwatched
    """Called with every segment that was loaded, on the thread that loaded it."""

    def __str__(self) -> str:
        """Key under which measured load times are kept.

        >>> str(Loading()), str(Loading(cold=True, bandwidth=2e8))
        ('warm', 'cold-200000000')
        """
        kind = "cold" if self.cold else "warm"
        return kind if self.bandwidth is None else f"{kind}-{self.bandwidth:.0f}"


WARM = Loading()
"""Loads from the page cache, at full speed."""


@dataclass
class ArenaStats:
    """Counters since the arena was made."""

    loads: int = 0
    """Segments that were asked to be loaded."""
    loaded: int = 0
    """Bytes of the segments counted in ``loads``."""
    evicted: int = 0
    """Bytes of segments that were evicted."""
    peak: int = 0
    """Bytes of the most segments that were resident or loading at once."""
    blocked_s: float = 0.0
    """Seconds that models waited for segments."""


class Arena(ABC):
    """Account of which segments are in memory; their bytes never exceed the budget.

    One thread calls the methods. Loads and evictions run on another thread, the loader, in the order in which they
    were asked for. Each segment has a ticket of its own, so that nobody waits for the segments behind it.

    Args:
        sizes: segment to its bytes.
        budget: bytes that may be resident at once; enough for all segments when left out.
        loading: how segments are loaded.
    """

    _inline: ClassVar[bool] = True
    """Whether the caller's thread loads what it waits for, while the loader has nothing to do."""

    def __init__(self, sizes: Mapping[str, int], budget: int | None = None, loading: Loading = WARM) -> None:
        self.sizes = dict(sizes)
        """Bytes of every segment."""
        self.budget = sum(self.sizes.values()) if budget is None else budget
        self.stats = ArenaStats()
        self._loading = loading
        self._residences = OrderedDict((name, Residence()) for name in self.sizes)  # least recently used first
        self._loader = ThreadPoolExecutor(1, "gemel-load")
        self._last_job: Future[None] = Future()
        self._last_job.set_result(None)
        self._settled = True
        """Whether all requests are done and their outcomes noted. The caller's thread keeps it."""

    @abstractmethod
    def _load(self, segment: str) -> None:
        """Bring a segment into memory. Called on the loader's thread or on the caller's."""

    @abstractmethod
    def _drop(self, segment: str) -> None:
        """Give a segment's memory back; called for a segment whose load failed, too."""

    def _kept(self, segment: str) -> bool:
        """Return whether a segment that was loaded and not evicted is still in memory."""
        return True

    @property
    def resident(self) -> int:
        """Bytes resident now, including those still loading."""
        return self._bytes_of(self.residents)

    @property
    def residents(self) -> tuple[str, ...]:
        """Segments resident now, including those still loading; least recently used first."""
        return tuple(name for name, segment in self._residences.items() if segment.occupies)

    def acquire(self, segments: Iterable[str]) -> None:
        """Make segments resident and hold them in memory until :meth:`release`.

        Raises:
            BackendError: the segments do not fit beside the held ones, or one of them cannot be loaded. None of them
                is held then; those that were loaded stay.
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
                self._transfer(self._room(missing), missing, waits=True)
            for segment in wanted:
                segment.wait()
        except BaseException:
            self.release(names)
            self._settle()
            raise
        self.stats.blocked_s += perf_counter() - began if blocks else 0.0

    def prefetch(self, load: Iterable[str], evict: Iterable[str] = (), done: Callable[[], None] = lambda: None) -> None:
        """Evict and then load segments while the caller goes on; :meth:`acquire` waits for those that it needs.

        Args:
            load: segments to load; those resident already are left alone.
            evict: segments to evict first; those not resident are left alone.
            done: called when all loads are over, usually on the loader's thread.

        Raises:
            BackendError: a segment to be evicted is held, or the segments to be loaded do not fit. Nothing was done.
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
        self._transfer(going, missing, waits=False)
        if missing:
            self._last_job.add_done_callback(lambda _: done())

    def loaded(self, segments: Iterable[str]) -> bool:
        """Return whether no model must wait for any of the segments.

        A segment whose load failed is not waited for: :meth:`acquire` tries again, and says why it fails.
        """
        self._settle()
        return not any(self._residences[name].awaited for name in segments)

    def release(self, segments: Iterable[str]) -> None:
        """Allow segments to be evicted again; they stay resident until their memory is needed."""
        for name in segments:
            self._residences[name].users -= 1

    def evict(self) -> None:
        """Evict every segment that nobody holds."""
        self._settle()
        self._transfer(self._idle(), [], waits=True)

    def close(self) -> None:
        """Wait for loading to end."""
        self._loader.shutdown()

    def _idle(self) -> list[str]:
        return [name for name, segment in self._residences.items() if segment.idle]

    def _bytes_of(self, names: Iterable[str]) -> int:
        return sum(self.sizes[name] for name in names)

    def _room(self, missing: Sequence[str]) -> list[str]:
        """Return the segments to evict so that ``missing`` fits: the least recently used that nobody holds.

        Raises:
            BackendError: evicting all of them would not be enough.
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
        """Evict segments, then load others.

        Requests are done in their order. One that overtook an earlier one would have its segments in memory together
        with those that the earlier one has yet to evict.

        Args:
            evict: segments to evict.
            load: segments to load.
            waits: whether the caller waits for the loads. The caller's thread may do them then.
        """
        if not evict and not load:
            return
        for name in evict:
            self._residences[name].drop()
        tickets = {name: self._residences[name].load() for name in load}
        for name in load:
            self._residences.move_to_end(name)
        self.stats.evicted += self._bytes_of(evict)
        self.stats.loads += len(load)
        self.stats.loaded += self._bytes_of(load)
        self.stats.peak = max(self.stats.peak, self.resident)
        self._settled = False
        if waits and self._inline and self._last_job.done():
            # Waking a thread would take longer than mapping pages that are in memory.
            self._work(evict, tickets)
        else:
            self._last_job = self._loader.submit(self._work, evict, tickets)

    def _settle(self) -> None:
        """Take note of the segments that were loaded, failed or lost since the last look."""
        if self._settled:
            return
        # Asked before looking: what the loader does in between is noted at the next look.
        done = self._last_job.done()
        for name, segment in self._residences.items():
            segment.settle(kept=self._kept(name))
        self._settled = done

    def _work(self, evict: Sequence[str], tickets: Mapping[str, Future[None]]) -> None:
        """Evict, then load each segment and settle its ticket, without waiting for the next one."""
        try:
            for name in evict:
                self._drop(name)
            for name, ticket in tickets.items():
                self._fetch(name, ticket)
        except BaseException as error:
            # An interrupt, or an eviction that failed: tickets that nothing will settle must not be waited for.
            for ticket in tickets.values():
                if not ticket.done():
                    ticket.set_exception(error)
            raise

    def _fetch(self, segment: str, ticket: Future[None]) -> None:
        """Load one segment, no faster than the bandwidth allows, and settle its ticket. Only an interrupt is raised."""
        began = monotonic()
        try:
            self._load(segment)
            if self._loading.bandwidth is not None:
                sleep(max(0.0, began + self.sizes[segment] / self._loading.bandwidth - monotonic()))
            self._loading.watch(segment, began, monotonic())
        except BaseException as error:
            self._drop(segment)
            ticket.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            ticket.set_result(None)

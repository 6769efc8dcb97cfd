"""The arena: segments in memory under a budget of bytes, loaded ahead on a thread of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic, perf_counter, sleep

from ...errors import BackendError
from ..trace import Watch, unwatched

__all__ = ["WARM", "Arena", "ArenaStats", "Loading"]


@dataclass(frozen=True)
class Loading:
    """How segments come into memory."""

    cold: bool = False
    """What is evicted leaves the page cache, too, as where memory is short; coming back, it is read from disk."""
    bandwidth: float | None = None
    """Bytes a second at most: what a slower device would do."""
    watch: Watch = unwatched
    """Told of every segment that was loaded, on the thread that loads."""

    def __str__(self) -> str:
        """All that times depend on.

        >>> str(Loading()), str(Loading(cold=True, bandwidth=2e8))
        ('warm', 'cold-200000000')
        """
        kind = "cold" if self.cold else "warm"
        return kind if self.bandwidth is None else f"{kind}-{self.bandwidth:.0f}"


WARM = Loading()
"""From the page cache, as fast as can be."""


@dataclass
class ArenaStats:
    """Counters since the arena was made."""

    loads: int = 0
    """Segments that became resident."""
    loaded: int = 0
    """Their bytes."""
    evicted: int = 0
    """Bytes."""
    peak: int = 0
    """The most bytes that were resident at once."""
    blocked_s: float = 0.0
    """Seconds that models waited for segments."""


class Arena(ABC):
    """Keeps account of what is resident, and never lets it be more than the budget.

    Args:
        sizes: segment to bytes.
        budget: bytes that may be resident at once; all of them if left out.
        loading: how segments come.

    Methods are for one thread; loading runs on another one, in the order in which it was asked for.
    """

    def __init__(self, sizes: Mapping[str, int], budget: int | None = None, loading: Loading = WARM) -> None:
        self.sizes = dict(sizes)
        """Bytes of every segment."""
        self.budget = sum(self.sizes.values()) if budget is None else budget
        self.stats = ArenaStats()
        self._loading = loading
        self._users: Counter[str] = Counter()
        self._resident: OrderedDict[str, None] = OrderedDict()  # least recently used first
        self._loader = ThreadPoolExecutor(1, "gemel-load")
        self._coming: dict[str, Future[None]] = {}
        self._failed: set[str] = set()

    @abstractmethod
    def _load(self, segment: str) -> None:
        """Bring a segment into memory, on whatever thread."""

    @abstractmethod
    def _drop(self, segment: str) -> None:
        """Give its memory back."""

    @property
    def resident(self) -> int:
        """Bytes resident now, or on their way."""
        return self._bytes_of(self._resident)

    @property
    def residents(self) -> tuple[str, ...]:
        """Segments resident now, or on their way, the least recently used first."""
        return tuple(self._resident)

    def acquire(self, segments: Iterable[str]) -> None:
        """Make segments resident and hold them there until :meth:`release`.

        Raises:
            BackendError: they do not fit beside what else is held, or one cannot be loaded. None is held then.
        """
        wanted = list(segments)
        self._settle()
        self._users.update(wanted)
        for name in wanted:
            if name in self._resident:
                self._resident.move_to_end(name)
        missing = [name for name in dict.fromkeys(wanted) if name not in self._resident]
        began = perf_counter()
        waits = bool(missing) or any(name in self._coming for name in wanted)
        try:
            self._transfer(self._room(missing), missing, at_once=True)
            for name in wanted:
                if name in self._coming:
                    self._coming[name].result()
        except BaseException:
            self.release(wanted)
            self._settle()
            raise
        self.stats.blocked_s += perf_counter() - began if waits else 0.0

    def prefetch(self, load: Iterable[str], evict: Iterable[str] = (), done: Callable[[], None] = lambda: None) -> None:
        """Drop and then load segments while the caller goes on; :meth:`acquire` waits for what it needs of them.

        Args:
            load: those that are resident already are left alone.
            evict: so are those that are not.
            done: called when that is over, mostly on the thread that loads.

        Raises:
            BackendError: one that is held was to be dropped, or what is to come does not fit; nothing was done.
        """
        self._settle()
        going = [name for name in dict.fromkeys(evict) if name in self._resident]
        held = [name for name in going if self._users[name]]
        if held:
            raise BackendError(f"arena: segment {held[0]} cannot be dropped while a model holds it")
        missing = [name for name in dict.fromkeys(load) if name not in self._resident or name in going]
        needed, free = self._bytes_of(missing), self.budget - self.resident + self._bytes_of(going)
        if needed > free:
            raise BackendError(f"arena: {needed} bytes are to be loaded, and {free} of {self.budget} are free")
        self._transfer(going, missing, at_once=False)
        if missing:
            self._coming[missing[-1]].add_done_callback(lambda _: done())

    def loaded(self, segments: Iterable[str]) -> bool:
        """Whether none of them is to be waited for: it is resident, or cannot be loaded, which :meth:`acquire` says."""
        self._settle()
        return all(name in self._failed or (name in self._resident and name not in self._coming) for name in segments)

    def release(self, segments: Iterable[str]) -> None:
        """Allow segments to be evicted again; they stay resident until the room is needed."""
        self._users.subtract(segments)

    def evict(self) -> None:
        """Drop every segment that nobody holds."""
        self._transfer(self._idle(), [], at_once=True)

    def close(self) -> None:
        """Wait for loading to end."""
        self._loader.shutdown()

    def _idle(self) -> list[str]:
        return [name for name in self._resident if self._users[name] == 0]

    def _bytes_of(self, names: Iterable[str]) -> int:
        return sum(self.sizes[name] for name in names)

    def _room(self, missing: Sequence[str]) -> list[str]:
        """What must go so that ``missing`` can come: the least recently used that nobody holds."""
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

    def _transfer(self, evict: Sequence[str], load: Sequence[str], *, at_once: bool) -> None:
        """Drop, then load. What is asked for later never overtakes, or both would be in memory for a while."""
        if not evict and not load:
            return
        self._settle()
        # Also of what is dropped now.
        loading = bool(self._coming)
        for name in evict:
            self._resident.pop(name, None)
            self._coming.pop(name, None)
        self._resident.update(dict.fromkeys(load))
        self._failed.difference_update(load)
        self.stats.evicted += self._bytes_of(evict)
        self.stats.loads += len(load)
        self.stats.loaded += self._bytes_of(load)
        self.stats.peak = max(self.stats.peak, self.resident)
        if at_once and not loading:
            # A thread would take longer to wake up than pages in memory to be mapped.
            try:
                self._work(evict, load)
            except BaseException:
                self._give_up(load)
                raise
            return
        coming = self._loader.submit(self._work, evict, load)
        self._coming |= dict.fromkeys(load or evict, coming)

    def _settle(self) -> None:
        """Take note of what has come, and of what could not be loaded."""
        for name, coming in list(self._coming.items()):
            if coming.done():
                del self._coming[name]
                if coming.exception() is not None and name in self._resident:
                    self._give_up([name])

    def _give_up(self, names: Iterable[str]) -> None:
        for name in names:
            del self._resident[name]
            self._failed.add(name)

    def _work(self, evict: Sequence[str], load: Sequence[str]) -> None:
        for name in evict:
            self._drop(name)
        try:
            for name in load:
                began = monotonic()
                self._load(name)
                if self._loading.bandwidth is not None:
                    sleep(max(0.0, began + self.sizes[name] / self._loading.bandwidth - monotonic()))
                self._loading.watch(name, began, monotonic())
        except BaseException:
            # All of them count as not loaded.
            for name in load:
                self._drop(name)
            raise

"""Queue of an output: events wait here, on a thread of their own, so that no output ever holds up the run."""

from __future__ import annotations

import logging
from collections import deque
from threading import Condition, Lock, Thread
from time import monotonic

from ...errors import first_line
from .events import SinkEvent
from .priority import step_back
from .sink_counts import SinkCounts
from .writer import RefusedError, Writer

__all__ = ["QueuedWriter", "reason_of_output"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
"""Seconds before an output that fails is tried again. The pause doubles each time, up to the writer's limit."""
_GRACE_S = 5.0
"""Maximum seconds that an output may take to write its waiting events after the run has ended."""
_PATIENCE_S = 5.0
"""Seconds that an offline run waits for room in the queue of an output that makes no progress."""
_CALM_S = 60.0
"""Seconds without a dropped event after which an output that was too slow counts as fast enough again."""
_MOST_LINES, _LINE_EVERY_S = 4, 30.0
"""Log lines that one output may write at once, and seconds after which it may write one more.

An output that fails and works in turns would otherwise fill the log.
"""


class QueuedWriter:
    """Writer behind a queue with a limit, and the thread that empties the queue.

    If the queue is full, the oldest event in it is dropped and counted. Events that a failing output could not write
    are written again after a pause. A line is logged whenever the output begins to fail, to drop, or to work again.

    Args:
        name: name of the output, for messages and counts.
        writer: writer that gets the events.
        patient: whether the run waits for room in a full queue, as long as the writer makes progress. Used offline,
            where nothing is lost by waiting.
    """

    def __init__(self, name: str, writer: Writer, *, patient: bool = False) -> None:
        self.name, self.writer = name, writer
        self._patient = patient
        self._items: deque[SinkEvent] = deque()
        self._bytes = 0
        self._lock = Lock()
        self._news = Condition(self._lock)
        self._room = Condition(self._lock)
        self._written = self._dropped = self._failed = self._busy = 0
        self._idle = self._finishing = self._over = self._hung = False
        self._error: str | None = None
        self._failing_since: float | None = None
        self._behind = False
        self._last_drop = self._moved = self._said = monotonic()
        self._pause = _FIRST_PAUSE_S
        self._lines = float(_MOST_LINES)
        self._thread = Thread(target=self._run, name=f"output-{name}", daemon=True)
        self._thread.start()

    def counts(self) -> SinkCounts:
        """Return the output's counts so far. Any thread may call this."""
        with self._lock:
            state = "failing" if self._failing_since is not None else "behind" if self._behind else "working"
            waiting = len(self._items) + self._busy
            return SinkCounts(self._written, self._dropped, self._failed, waiting, self._error, state)

    def offer(self, event: SinkEvent) -> None:
        """Put an event in the output's queue, if the writer wants it. Never raises, and waits only offline."""
        try:
            if event.kind not in self.writer.kinds or not self.writer.wants(event):
                return
            size = event.footprint
        except Exception as error:
            with self._lock:
                self._failed += 1
            self._fail(error)
            return
        with self._lock:
            if self._patient and not self._fits(size):
                self._wait_for_room(size)
            if self._over or self._finishing:
                self._dropped += 1
                return
            while self._items and not self._fits(size):
                self._bytes -= self._items.popleft().footprint
                self._drop()
            self._items.append(event)
            self._bytes += size
            if self._idle or self._ripe():
                self._news.notify()

    def finish(self) -> None:
        """Accept no more events for the output, and write those that wait, without further pauses."""
        with self._lock:
            self._finishing = True
            self._moved = monotonic()
            self._news.notify_all()
            self._room.notify_all()

    def join(self) -> None:
        """Wait until all events are written, or the output makes no progress; then drop the events that are left."""
        self.finish()
        began = monotonic()
        while self._thread.is_alive():
            with self._lock:
                # Offline the writer may take its time, as long as it goes on.
                left = _GRACE_S - (monotonic() - (self._moved if self._patient else began))
            if left <= 0:
                break
            self._thread.join(min(left, 0.5))
        with self._lock:
            if self._over:
                return
            self._over = True
            lost = len(self._items) + self._busy
            self._dropped += lost
            self._busy = 0
            self._items.clear()
        self._fail(TimeoutError(f"not finished {_GRACE_S:g} s after the end of the run; {lost} are lost"))

    def _fits(self, size: int) -> bool:
        """Return whether the output's queue has room for an event of ``size`` bytes. An empty queue takes any event."""
        if not self._items:
            return True
        return len(self._items) < self.writer.depth and self._bytes + size <= self.writer.most_bytes

    def _ripe(self) -> bool:
        """Return whether enough events wait in the output's queue to write them now, without waiting for more."""
        count, writer = len(self._items), self.writer
        return count >= min(writer.batch, writer.depth // 2) or 2 * self._bytes > writer.most_bytes or self._finishing

    def _wait_for_room(self, size: int) -> None:
        """Wait until an event fits in the output's queue, unless the writer fails or makes no progress for seconds."""
        if not self._hung and self._failing_since is None:
            self._room.wait_for(
                lambda: self._fits(size) or self._finishing or self._failing_since is not None, _PATIENCE_S
            )
            # The next event does not wait again until the writer goes on.
            self._hung = not self._fits(size)

    def _drop(self) -> None:
        self._dropped += 1
        self._last_drop = monotonic()
        if not self._behind and self._failing_since is None:
            self._behind = True
            self._say("too slow: the oldest of %d waiting are dropped", len(self._items) + 1)

    def _run(self) -> None:
        """Write events until the output's queue is finished and empty. Runs on its thread and raises nothing."""
        if self.writer.polite:
            step_back()
        self._keep_ready()
        while True:
            if batch := self._take():
                self._deliver(batch)
            elif self._finishing:
                break
            else:
                self._keep_ready()
        try:
            self.writer.close()
        except Exception as error:
            self._fail(error)
        with self._lock:
            self._over = True

    def _take(self) -> deque[SinkEvent]:
        """Wait for events of the output and return the oldest ones; none at the end, and if none comes for a while."""
        writer = self.writer
        with self._lock:
            self._idle = True
            pause = writer.idle_every and max(writer.idle_every, 0 if self._failing_since is None else self._pause)
            self._news.wait_for(lambda: self._items or self._finishing, pause)
            self._idle = False
            if not self._items:
                return deque()
            if writer.linger:
                self._news.wait_for(self._ripe, writer.linger)
            batch = deque(self._items.popleft() for _ in range(min(writer.batch, len(self._items))))
            self._bytes -= sum(event.footprint for event in batch)
            self._busy = len(batch)
            self._room.notify_all()
            if self._behind and monotonic() - self._last_drop > _CALM_S:
                self._behind = False
                self._say("fast enough again; %d dropped so far", self._dropped)
            return batch

    def _keep_ready(self) -> None:
        """Call the writer's ``idle``, if it has one, while there is nothing to write."""
        if self.writer.idle_every is None:
            return
        try:
            self.writer.idle()
        except Exception as error:
            self._fail(error)
            self._pause = min(2 * self._pause, self.writer.longest_pause)
        else:
            self._recover()

    def _deliver(self, batch: deque[SinkEvent]) -> None:
        """Write events to the output, trying again until they are written, lost, or the run ends."""
        while batch:
            finishing, before = self._finishing, len(batch)
            error: Exception | None = None
            try:
                self.writer.write(batch)
            except Exception as caught:
                error = caught
            with self._lock:
                if self._over:
                    return
                self._written += before - len(batch)
                if len(batch) < before:
                    self._moved, self._hung = monotonic(), False
                if error is not None and not isinstance(error, OSError):
                    lost = len(batch) if isinstance(error, RefusedError) else 1
                    self._failed += lost
                    for _ in range(lost):
                        batch.popleft()
                elif error is not None and finishing:
                    self._dropped += len(batch) + len(self._items)
                    self._items.clear()
                    batch.clear()
                self._busy = len(batch)
            if error is None:
                self._recover()
                continue
            self._fail(error)
            if isinstance(error, OSError | RefusedError):
                with self._lock:
                    self._news.wait_for(lambda: self._finishing, self._pause)
                self._pause = min(2 * self._pause, self.writer.longest_pause)

    def _fail(self, error: Exception) -> None:
        """Note a failure of the output, and log it if the output worked before."""
        with self._lock:
            self._error = reason_of_output(error)
            if self._failing_since is None:
                self._failing_since = monotonic()
                self._say("%s", self._error)
            self._room.notify_all()

    def _recover(self) -> None:
        """Note that the output works, and log it if it failed before."""
        with self._lock:
            self._pause = _FIRST_PAUSE_S
            if self._failing_since is not None:
                seconds, self._failing_since = monotonic() - self._failing_since, None
                figures = self._dropped, self._failed
                self._say("works again after %.0f s; %d dropped, %d failed so far", seconds, *figures)

    def _say(self, message: str, *values: object) -> None:
        """Log a line about the output, unless too many lines about it were logged lately."""
        now = monotonic()
        self._lines = min(_MOST_LINES, self._lines + (now - self._said) / _LINE_EVERY_S)
        self._said = now
        if self._lines >= 1:
            self._lines -= 1
            where = f"{self.name} ({self.writer.target})" if self.writer.target else self.name
            _log.warning(f"output %s: {message}", where, *values)


def reason_of_output(error: BaseException) -> str:
    """Return the reason of an output's failure in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return first_line(error)

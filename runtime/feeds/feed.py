"""A feed: one thread that reads a source and holds frames ready."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace
from threading import Condition, Event, Thread
from time import monotonic

from ...frames.frame import Frame
from ...frames.reader import Picture, Reader, reason_of
from ...frames.source import FrameSource
from ..trace import Watch, unwatched
from .pacing import Backoff, Decimator, Timeline

__all__ = ["Feed"]

_log = logging.getLogger(__name__)

_OFFLINE_DEPTH = 2
_MAX_LAG_S = 1.0


class Feed:
    """Reads a source on its own thread, and opens it again when it fails.

    Live, it holds only the newest frames, mostly one: what nobody took in time is dropped. Recordings are then paced to
    real time, so that a file can stand for a camera. Offline, nothing is paced or dropped: the thread waits until
    frames are taken.

    A camera or stream that ends or fails is opened again after a pause that doubles; each time is counted in
    ``restarts`` and its reason kept in ``error``. A recording that ends has ended; one that fails in the middle has
    ended with ``error``, or is restarted if it loops.

    Args:
        name: of the feed.
        source: what is read.
        fps: frames a second that are delivered at most.
        loop: whether a recording begins again at its end.
        backoff: pauses before a source is opened again.
        watch: told, on the feed's thread, when each frame was decoded.
    """

    def __init__(
        self,
        name: str,
        source: FrameSource,
        *,
        fps: float | None = None,
        loop: bool = False,
        backoff: Backoff | None = None,
        watch: Watch = unwatched,
    ) -> None:
        self.name = name
        self.delivered = 0
        """Frames that became available; the index of the next one."""
        self.dropped = 0
        """Of these, frames that newer ones replaced before they were taken."""
        self.restarts = 0
        self.error: str | None = None
        """The reason of the last restart, or of the end."""
        self._source = source
        self._loop = loop
        self._backoff = backoff or Backoff()
        self._watch = watch
        self._decimator = Decimator(fps)
        self._timeline = Timeline()
        self._box: deque[Frame] = deque()
        self._wake = Condition()
        self._stop = Event()
        self._done = False
        self._live = True
        self._depth = 1
        self._limit: int | None = None
        self._began = 0.0
        self._seen = 0
        self._corrupt = 0
        self._reader: Reader | None = None
        self._due: float | None = None
        self._thread: Thread | None = None

    @property
    def corrupt(self) -> int:
        """Frames that could not be decoded."""
        reader = self._reader
        return self._corrupt + (reader.corrupt if reader is not None else 0)

    @property
    def waiting(self) -> bool:
        """Whether a frame can be taken."""
        return bool(self._box)

    @property
    def finished(self) -> bool:
        """Whether no frame is left and none will come."""
        with self._wake:
            return self._done and not self._box

    def start(self, wake: Condition, *, live: bool = True, limit: int | None = None, depth: int = 1) -> None:
        """Start reading; once in a feed's life.

        Args:
            wake: notified whenever a frame is ready or the feed ends; shared by all feeds of a run.
            live: newest frame wins, in real time; otherwise every frame, at the consumer's pace.
            limit: end after this many delivered frames.
            depth: how many of the newest frames are held, live.
        """
        if self._thread is not None:
            raise RuntimeError(f"feed {self.name!r} was started before")
        self._wake, self._live, self._limit, self._depth = wake, live, limit, depth
        self._thread = Thread(target=self._run, name=f"feed-{self.name}", daemon=True)
        self._thread.start()

    def take(self) -> Frame | None:
        """The oldest frame that is held, if there is one; it is then no longer held."""
        with self._wake:
            if not self._box:
                return None
            frame = self._box.popleft()
            if self._live:
                return frame
            self._wake.notify_all()
            # Offline nothing arrives before it is asked for: waiting in the queue is not latency.
            return replace(frame, arrived=monotonic())

    def stop(self) -> None:
        """Deliver nothing from now on. Returns at once; may be called at any time and more than once."""
        with self._wake:
            self._stop.set()
            self._wake.notify_all()

    def join(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds until the thread is gone. A read from a silent camera may take some."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._read_until_over()
        except Exception as error:
            _log.exception("feed %s: given up", self.name)
            self.error = reason_of(error)
        finally:
            with self._wake:
                self._done = True
                self._wake.notify_all()

    def _read_until_over(self) -> None:
        attempt = -1
        while not self._over():
            before = self._seen
            reason, finite = self._pass()
            if self._over():
                return
            empty = self._seen == before
            if not self._source.live or (finite and reason is None):
                if reason is None and empty:
                    reason = "there is no readable frame in it"
                if reason is None and self._loop:
                    continue
                # A recording that gave nothing will give nothing the next time either.
                if reason is None or empty or not self._loop:
                    self._end(reason)
                    return
            attempt = attempt + 1 if empty else 0
            self._restart(reason or "the stream ended", self._backoff.delay(attempt))

    def _pass(self) -> tuple[str | None, bool]:
        """Read the source once, to its end or a failure; the reason of a failure, and whether it is a recording."""
        reader: Reader | None = None
        try:
            reader = self._reader = self._source.open()
            at = monotonic() - self._began if self._source.live and self._seen else None
            self._timeline.begin(at, period=reader.period)
            for picture in reader:
                if not self._seen:
                    self._began = monotonic()
                self._seen += 1
                self._offer(picture, paced=self._live and reader.finite)
                if self._over():
                    break
            return None, reader.finite
        except Exception as error:
            return reason_of(error), False
        finally:
            if reader is not None:
                self._corrupt, self._reader = self._corrupt + reader.corrupt, None
                reader.close()

    def _offer(self, picture: Picture, *, paced: bool) -> None:
        stamp, load = picture
        time = self._timeline(stamp)
        if not self._decimator.keep(time):
            return
        began = monotonic()
        image = load()
        self._watch("frame", began, monotonic())
        image.flags.writeable = False
        if paced:
            self._pace(time)
        frame = Frame(self.name, self.delivered, image, time, monotonic())
        with self._wake:
            if self._live:
                if not self._stop.is_set() and len(self._box) == self._depth:
                    self.dropped += 1
                    self._box.popleft()
            else:
                self._wake.wait_for(lambda: len(self._box) < _OFFLINE_DEPTH or self._stop.is_set())
            # Checked under the lock: after stop() returned, the counts stand.
            if self._stop.is_set():
                return
            self._box.append(frame)
            self.delivered += 1
            self._wake.notify_all()

    def _pace(self, time: float) -> None:
        now = monotonic()
        # After a stall a camera goes on with the present; it does not hurry through what it missed.
        if self._due is None or now - (self._due + time) > _MAX_LAG_S:
            self._due = now - time
        self._stop.wait(max(0.0, self._due + time - now))

    def _over(self) -> bool:
        return self._stop.is_set() or (self._limit is not None and self.delivered >= self._limit)

    def _end(self, reason: str | None) -> None:
        if reason is not None:
            self.error = reason
            _log.warning("feed %s: ended: %s", self.name, reason)

    def _restart(self, reason: str, delay: float) -> None:
        self.error = reason
        self.restarts += 1
        _log.warning("feed %s: %s; trying again in %.1f s", self.name, reason, delay)
        self._stop.wait(delay)

"""Feed of a run: one thread that reads a source and keeps frames ready to be taken."""

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
"""Maximum number of frames that a feed holds in an offline run; then its thread waits until a frame is taken."""
_MAX_LAG_S = 1.0
"""Maximum seconds by which a paced recording may be late. After a longer stall it does not catch up."""


class Feed:
    """Source of frames that is read on its own thread, and opened again when it fails.

    In a live run, a feed holds only the newest frames, mostly one, and drops frames that were not taken in time.
    Recordings are paced to real time, so that a file can stand for a camera. In an offline run, nothing is paced or
    dropped: the thread waits until frames are taken.

    A camera or stream that ends or fails is opened again after a pause, which doubles with each attempt that gives no
    frame. Each restart is counted in ``restarts``, and its reason is kept in ``error``. A recording ends the feed with
    its last frame. A recording that fails in the middle ends the feed with ``error``, or is restarted if it loops.

    Args:
        name: name of the feed.
        source: camera, stream or recording to read.
        fps: maximum frames per second to deliver; all frames if None.
        loop: whether a recording begins again at its end.
        backoff: pauses before a source is opened again.
        watch: function that is told, on the feed's thread, when decoding of each frame began and ended.
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
        """Number of frames delivered so far, which is the index of the next frame."""
        self.dropped = 0
        """Number of delivered frames that newer frames replaced before they were taken."""
        self.restarts = 0
        """Number of times that the source was opened again, after an end or a failure."""
        self.error: str | None = None
        """Reason of the feed's last restart, or of its end; None if there was no failure."""
        self._source = source
        self._loop = loop
        self._backoff = backoff or Backoff()
        self._watch = watch
        self._decimator = Decimator(fps)
        self._timeline = Timeline()
        self._box: deque[Frame] = deque()
        """Frames that are ready to be taken, oldest first."""
        self._wake = Condition()
        self._stop = Event()
        self._done = False
        self._live = True
        self._depth = 1
        self._limit: int | None = None
        self._began = 0.0
        """Time at which the first picture was read, in seconds of the monotonic clock."""
        self._seen = 0
        """Number of pictures read so far, over all openings of the source."""
        self._corrupt = 0
        """Number of corrupt frames in readers that were closed."""
        self._reader: Reader | None = None
        self._due: float | None = None
        """Time, in seconds of the monotonic clock, at which time 0 of a paced recording is due."""
        self._thread: Thread | None = None

    @property
    def corrupt(self) -> int:
        """Number of frames that could not be decoded so far."""
        reader = self._reader
        return self._corrupt + (reader.corrupt if reader is not None else 0)

    @property
    def waiting(self) -> bool:
        """Whether a frame is ready to be taken."""
        return bool(self._box)

    @property
    def finished(self) -> bool:
        """Whether no frame is ready to be taken, and none will come."""
        with self._wake:
            return self._done and not self._box

    def start(self, wake: Condition, *, live: bool = True, limit: int | None = None, depth: int = 1) -> None:
        """Start reading. A feed can be started once.

        Args:
            wake: condition that is notified whenever a frame is ready or the feed ends; all feeds of a run share it.
            live: whether to hold the newest frames, in real time; otherwise every frame is delivered, as fast as
                frames are taken.
            limit: number of delivered frames after which the feed ends; no limit if None.
            depth: maximum number of newest frames to hold; used in a live run only.

        Raises:
            RuntimeError: the feed was started before.
        """
        if self._thread is not None:
            raise RuntimeError(f"feed {self.name!r} was started before")
        self._wake, self._live, self._limit, self._depth = wake, live, limit, depth
        self._thread = Thread(target=self._run, name=f"feed-{self.name}", daemon=True)
        self._thread.start()

    def take(self) -> Frame | None:
        """Take and return the oldest frame that is ready; return None if no frame is ready."""
        with self._wake:
            if not self._box:
                return None
            frame = self._box.popleft()
            if self._live:
                return frame
            self._wake.notify_all()
            # Offline a frame arrives when it is taken: the time that it was held is not latency.
            return replace(frame, arrived=monotonic())

    def stop(self) -> None:
        """Stop delivering frames. Do not wait for the feed's thread. Idempotent."""
        with self._wake:
            self._stop.set()
            self._wake.notify_all()

    def join(self, timeout: float | None = None) -> None:
        """Wait up to ``timeout`` seconds for the feed's thread to end.

        A read from a silent camera blocks for seconds.
        """
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        """Read the source until the feed ends. Runs on the feed's thread and raises nothing."""
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
        """Read the source, and open it again after an end or a failure, until the feed ends."""
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
                # A recording that gave no frame will give none the next time either.
                if reason is None or empty or not self._loop:
                    self._end(reason)
                    return
            attempt = attempt + 1 if empty else 0
            self._restart(reason or "the stream ended", self._backoff.delay(attempt))

    def _pass(self) -> tuple[str | None, bool]:
        """Read the source once, to its end or a failure.

        Returns:
            The reason of a failure, or None; and whether the source is a recording that was read without a failure.
        """
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
        """Decode a picture and hold it as a frame, unless the rate limit leaves it out.

        In a live run, the oldest frame is dropped if there is no room. In an offline run, the call waits for room.
        """
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
            # Checked under the lock, so that counts do not change after stop() has returned.
            if self._stop.is_set():
                return
            self._box.append(frame)
            self.delivered += 1
            self._wake.notify_all()

    def _pace(self, time: float) -> None:
        """Wait until the frame at ``time`` seconds of the recording is due."""
        now = monotonic()
        # Like a camera, a recording goes on at its normal rate after a stall, and does not hurry to catch up.
        if self._due is None or now - (self._due + time) > _MAX_LAG_S:
            self._due = now - time
        self._stop.wait(max(0.0, self._due + time - now))

    def _over(self) -> bool:
        """Return whether the feed was stopped or has reached its limit."""
        return self._stop.is_set() or (self._limit is not None and self.delivered >= self._limit)

    def _end(self, reason: str | None) -> None:
        """Note and log the reason why the feed ends, if it ends because of a failure."""
        if reason is not None:
            self.error = reason
            _log.warning("feed %s: ended: %s", self.name, reason)

    def _restart(self, reason: str, delay: float) -> None:
        """Count a restart, note its reason, and pause for ``delay`` seconds."""
        self.error = reason
        self.restarts += 1
        _log.warning("feed %s: %s; trying again in %.1f s", self.name, reason, delay)
        self._stop.wait(delay)

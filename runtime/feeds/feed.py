"""Feed of a run: one thread that reads a source and keeps frames ready to be taken."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from threading import Condition, Event, Thread
from time import monotonic, time

from ...frames.frame import Frame, Image
from ...frames.reader import Picture, Reader, SilentError, reason_of
from ...frames.source import FrameSource
from ..trace import Watch, unwatched
from .feed_state import FeedCounts, FeedState, StateName
from .pacing import Backoff, Decimator, Pacer, Patience, Timeline

__all__ = ["Feed"]

_log = logging.getLogger(__name__)

_OFFLINE_DEPTH = 2
"""Maximum number of frames that a feed holds in an offline run; then its thread waits until a frame is taken."""


class Feed:
    """Source of frames that is read on its own thread, and opened again when it fails.

    In a live run, a feed holds only the newest frames, mostly one, and drops frames that were not taken in time.
    Recordings are paced to real time, so that a file can stand for a camera. In an offline run, nothing is paced or
    dropped: the thread waits until frames are taken.

    A camera or stream that ends or fails is opened again after a pause, which doubles with each attempt that gives no
    frame. The reason of the newest restart is kept in ``error``. A recording ends the feed with its last frame, or with
    ``error`` if it fails. A recording that loops is opened again like a camera, if it gave a frame before.

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
        self.counts = FeedCounts()
        """Counts of the feed's delivered pictures, of pictures that were left out, and of restarts."""
        self.dropped = 0
        """Number of delivered frames that newer frames replaced before they were taken."""
        self._source, self._loop = source, loop
        self._backoff = backoff or Backoff()
        self._patience, self._watch = Patience(), watch
        self._state = FeedState(name)
        self._decimator = Decimator(fps)
        self._timeline = Timeline()
        self._box: deque[Frame] = deque()
        """Frames of the feed that are ready to be taken, oldest first."""
        self._wake = Condition()
        self._stop, self._pausing = Event(), Event()
        self._done, self._live, self.depth = False, True, 1
        """Maximum number of newest frames that a live feed holds."""
        self._limit: int | None = None
        self._began = 0.0
        """Time at which the feed's first picture was read, in seconds of the monotonic clock."""
        self._seen = 0
        """Number of pictures that the feed has read so far, over all openings of its source."""
        self._pacer, self._arrived = Pacer(), 0.0
        self._thread: Thread | None = None

    @property
    def delivered(self) -> int:
        """Number of frames delivered so far, which is the index of the next frame."""
        return self.counts.delivered

    @property
    def error(self) -> str | None:
        """Reason of the feed's last restart, or of its end; None if there was no failure."""
        return self._state.error

    @property
    def state(self) -> StateName:
        """State of the feed: ``starting``, ``running``, ``reconnecting``, ``paused``, ``ended`` or ``failed``."""
        return self._state.name

    @property
    def lag_ms(self) -> float:
        """Milliseconds by which the newest frame of a camera was older than the moment at which it was delivered."""
        return self._state.lag_ms

    @property
    def waiting(self) -> bool:
        """Whether a frame of the feed is ready to be taken."""
        return bool(self._box)

    @property
    def finished(self) -> bool:
        """Whether no frame is ready to be taken, and the feed will deliver no further frame."""
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
        self._wake, self._live, self._limit, self.depth = wake, live, limit, depth
        self._thread = Thread(target=self._run, name=f"feed-{self.name}", daemon=True)
        self._thread.start()

    def take(self) -> Frame | None:
        """Take and return the feed's oldest frame that is ready; return None if no frame is ready."""
        with self._wake:
            if not self._box:
                return None
            frame = self._box.popleft()
            if self._live:
                return frame
            self._wake.notify_all()
            # Offline a frame arrives when it is taken: the time that it was held is not latency.
            return replace(frame, arrived=monotonic(), at=time())

    def pause(self, paused: bool) -> None:
        """Pause the feed, which closes its source, or resume it: a recording then begins at its start. Idempotent."""
        with self._wake:
            (self._pausing.set if paused else self._pausing.clear)()
            self._wake.notify_all()

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
            self._state.end(reason_of(error))
        finally:
            with self._wake:
                self._done = True
                self._wake.notify_all()

    def _read_until_over(self) -> None:
        """Read the source, and open it again after an end or a failure, until the feed ends."""
        attempt = -1
        while not self._over():
            if self._pausing.is_set():
                self._rest()
                continue
            before, began = self._seen, monotonic()
            reason, finite, again_s = self._pass()
            if self._over() or self._pausing.is_set():
                continue
            empty = self._seen == before
            if again_s is not None and reason is None and self._seen == before + 1:
                self._stop.wait(max(0.0, again_s - (monotonic() - began)))
                continue
            if not self._source.live or (finite and reason is None):
                if reason is None and empty:
                    reason = "there is no readable frame in it"
                if reason is None and self._loop:
                    continue
                # A recording that never gave a frame will give none the next time either.
                if reason is None or not self._loop or not self._seen:
                    self._state.end(reason)
                    return
            attempt = attempt + 1 if empty else 0
            delay = self._backoff.delay(attempt)
            self.counts.restarts += 1
            self._state.restart(reason or "the stream ended", delay)
            self._stop.wait(delay)
        if not self._stop.is_set():
            self._state.end(None)

    def _rest(self) -> None:
        """Wait until the paused feed is resumed or stopped."""
        self._state.name = "paused"
        with self._wake:
            self._wake.wait_for(lambda: self._stop.is_set() or not self._pausing.is_set())

    def _pass(self) -> tuple[str | None, bool, float | None]:
        """Read the source once, to its end or a failure.

        Returns:
            The reason of a failure, or None; whether the source is a recording that was read without a failure; and
            the seconds from one opening to the next of a source that gives one picture per opening.
        """
        reader: Reader | None = None
        before = self._seen
        try:
            reader = self.counts.reader = self._source.open(self._patience.factor)
            at = monotonic() - self._began if self._source.live and self._seen else None
            self._timeline.begin(at, period=reader.period)
            for picture in reader:
                if not self._seen:
                    self._began = monotonic()
                self._seen += 1
                self._offer(picture, reader)
                if self._over() or self._pausing.is_set():
                    break
            return None, reader.finite, reader.again_s
        except Exception as error:
            if isinstance(error, SilentError):
                self._patience.silent(self._seen - before)
            return reason_of(error), False, None
        finally:
            if reader is not None:
                self.counts.close_reader()
                reader.close()

    def _offer(self, picture: Picture, reader: Reader) -> None:
        """Decode a picture and hold it as a frame, unless the rate limit leaves it out.

        In a live run, the oldest frame is dropped if there is no room. In an offline run, the call waits for room.
        """
        stamp, load = picture
        is_stream = self._source.live and not reader.finite
        moment = self._timeline(stamp, monotonic() if is_stream else None)
        if not self._decimator.keep(moment, clocked=reader.clocked):
            self.counts.left_out += 1
            return
        image = self._convert(load)
        if image is None:
            return
        if self._live and reader.finite:
            self._stop.wait(self._pacer.wait(moment, monotonic()))
        frame = self._frame(image, moment, reader)
        with self._wake:
            if self._live:
                if not self._stop.is_set() and len(self._box) >= self.depth:
                    self.dropped += 1
                    self._box.popleft()
            else:
                self._wake.wait_for(lambda: len(self._box) < _OFFLINE_DEPTH or self._stop.is_set())
            # Checked under the lock, so that counts do not change after stop() or pause() has returned.
            if self._stop.is_set() or self._pausing.is_set():
                return
            self._box.append(frame)
            self.counts.delivered += 1
            self._wake.notify_all()
        self._state.deliver(monotonic() - frame.arrived if is_stream else 0.0, self.counts.behind)

    def _convert(self, load: Callable[[], Image]) -> Image | None:
        """Return the pixels of a picture; count it as corrupt and return None if it cannot be converted."""
        began = monotonic()
        try:
            image = load()
        except Exception as error:
            # Any exception, also MemoryError: one picture must not end the feed.
            self.counts.unconverted += 1
            self._state.note(f"a picture cannot be converted: {reason_of(error)}")
            return None
        self._watch("frame", began, monotonic())
        image.flags.writeable = False
        return image

    def _frame(self, image: Image, moment: float, reader: Reader) -> Frame:
        """Return an image of the feed as a frame, with the frame's index and times."""
        now = monotonic()
        captured = now if reader.captured is None else reader.captured
        # A better estimate of the camera's clock must not make a frame older than the one before it.
        self._arrived = min(now, max(captured, self._arrived))
        return Frame(self.name, self.delivered, image, moment, self._arrived, time() - (now - self._arrived))

    def _over(self) -> bool:
        """Return whether the feed was stopped or has reached its limit."""
        return self._stop.is_set() or (self._limit is not None and self.delivered >= self._limit)

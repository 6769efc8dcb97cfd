"""Decoder of one video stream, which leaves out damaged pictures and all that depend on them."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from typing import Any

import av
import numpy as np

from ..errors import FeedError
from .frame import Image
from .h264_gaps import GapFinder
from .hardware import accelerator, hardware_codec
from .reader import reason_of
from .settings import ReadSettings

__all__ = ["StreamDecoder"]

_log = logging.getLogger(__name__)

_MAX_CORRUPT_RUN = 300
"""Number of packets in a row that cannot be decoded, after which a stream counts as broken: about ten seconds."""
_MAX_CORRUPT_KEYS = 10
"""Number of key frames in a row that cannot be decoded, after which a live stream counts as broken."""
_STRICT_KEYS = 2
"""Number of key frames in a row that a strict decoder may refuse before the decoder becomes lenient."""
_HELD = 450
"""Number of packets without a key frame, about 15 seconds, after which a stream counts as one without key frames."""
_LARGE = 1920 * 1080
"""Minimum number of pixels of a picture for which two threads decode a live stream. Each further thread delays pictures
by one."""


class StreamDecoder:
    """Decoder of a video stream. Every picture that it returns is whole, as far as FFmpeg can tell.

    After a damaged picture, pictures are withheld until the next key frame, because they are predicted from the damaged
    one. Withheld pictures are not decoded. The same holds at the beginning of a stream that starts between two key
    frames.

    Args:
        stream: PyAV video stream, whose container is open.
        settings: number of threads, and hardware.
        live: whether the stream is a camera, for which a picture should come as soon as possible.
        feed: name of the feed, for the log.
    """

    def __init__(self, stream: Any, settings: ReadSettings, *, live: bool, feed: str = "") -> None:
        self.corrupt = 0
        """Number of a stream's pictures that could not be decoded or are damaged."""
        self.withheld = 0
        """Number of good pictures that were withheld, because they depend on a picture that is damaged or missing."""
        self._stream, self._settings, self._live, self._feed = stream, settings, live, feed
        self._context = self._open(strict=True)
        self._strict = True
        self._decoded = False
        """Whether a stream's decoder has returned a good picture yet."""
        self._held = True
        """Whether a stream's decoder withholds pictures until the next key frame."""
        self._held_run = 0
        """Number of a stream's packets since the last key frame for which pictures are withheld."""
        self._has_keys = True
        """Whether a stream seems to have key frames; some cameras refresh a part of each picture instead."""
        self._first: int | None = None
        """Time stamp of the key frame at which decoding began anew. Pictures with earlier stamps cannot be whole."""
        self._counted: deque[int] = deque(maxlen=32)
        """Time stamps of the newest packets that gave an error. FFmpeg may still return pictures of these packets."""
        self._run = self._failed_keys = 0
        is_h264 = self._context.codec.name.startswith("h264")
        self._gaps = GapFinder(self._context.extradata) if is_h264 else None
        self._reformatter = av.video.reformatter.VideoReformatter()

    def decode(self, packet: Any) -> list[Any]:
        """Decode a packet, and return the good pictures that are ready; an empty packet flushes the last pictures.

        Raises:
            FeedError: too many packets in a row could not be decoded.
        """
        if packet.size and packet.is_corrupt:
            self._damaged(packet, "the transport lost a part")
            return []
        if packet.size and self._gaps is not None and self._gaps.lost(bytes(packet)) and not self._held:
            # The lost picture is not counted: nobody knows how many there were.
            self.hold()
        if packet.size and self._held and not self._release(packet):
            self.withheld += 1
            return []
        return self._decode(packet)

    def _decode(self, packet: Any, *, again: bool = False) -> list[Any]:
        try:
            frames = self._context.decode(packet)
        except av.error.EOFError:
            return []
        except (av.FFmpegError, ValueError) as error:
            if self._is_leading(packet.pts):
                self.withheld += 1
                return []
            self._damaged(packet, reason_of(error))
            if self._context.thread_count > 1 and packet.is_keyframe and not again:
                # With several threads, an error may be that of a picture before the key frame.
                self._release(packet)
                self._note(packet.pts)
                return self._decode(packet, again=True)
            return []
        return [frame for frame in frames if self._is_good(frame)]

    def hold(self) -> None:
        """Withhold pictures until the next key frame, because packets of the stream were left out."""
        self._held, self._held_run = self._has_keys, 0
        if self._gaps is not None:
            self._gaps.forget()

    def pixels(self, frame: Any) -> Image:
        """Return the pixels of a decoded frame in BGR, rotated as the video's metadata says."""
        # One reformatter for all frames: a new one for each frame doubles the time, and starts a thread per core.
        image: Any = self._reformatter.reformat(frame, format="bgr24", **_one_thread()).to_ndarray()
        # Phones and ceiling cameras store pictures as the sensor sees them, with a rotation to show them by.
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def _open(self, *, strict: bool, anew: bool = False) -> Any:
        """Return a PyAV codec context that decodes a stream.

        Args:
            strict: whether the decoder refuses pictures with errors that FFmpeg would conceal.
            anew: whether to make a context instead of taking the one that the stream's container has.

        Raises:
            FeedError: this machine does not have the hardware that the settings ask for.
        """
        context = self._stream.codec_context
        name = hardware_codec(self._settings.hardware, context.codec.name)
        if name is not None or anew:
            extradata = context.extradata
            context = av.CodecContext.create(
                name or context.codec.name, "r", hwaccel=accelerator(self._settings.hardware)
            )
            context.extradata = extradata
        if strict:
            context.options = {"err_detect": "explode"}
        large = (context.width or 0) * (context.height or 0) >= _LARGE
        threads = min(self._settings.threads, 2 if large else 1) if self._live else self._settings.threads
        context.thread_count, context.thread_type = threads, "AUTO" if threads > 1 else "SLICE"
        if name is not None:
            try:
                context.open()
            except (av.FFmpegError, OSError, ValueError) as error:
                raise FeedError(f"hardware: v4l2 cannot decode here: {name}: {reason_of(error)}") from error
        return context

    def _release(self, packet: Any) -> bool:
        """Return whether to end the withholding of pictures and decode again from a packet on: the packet is a key
        frame, or no key frame has come for long."""
        self._held_run += 1
        self._has_keys = packet.is_keyframe or (self._has_keys and self._held_run < _HELD)
        if self._has_keys and not packet.is_keyframe:
            return False
        if self._decoded or self._run:
            self._restart()
        self._held = False
        self._first = packet.pts if packet.is_keyframe else None
        return True

    def _restart(self) -> None:
        """Empty FFmpeg's decoder. Its remaining pictures count as withheld (not delivered), unless counted before."""
        with suppress(av.FFmpegError, ValueError):
            self.withheld += sum(frame.pts not in self._counted for frame in self._context.decode(None))
        if self._gaps is not None and self._settings.hardware == "none":
            # In a stream without IDR pictures, a new H.264 decoder waits until pictures are whole again; a flushed one
            # does not. Such a stream tells the decoder to forget pictures that a new decoder never saw, which a strict
            # decoder refuses.
            self._context = self._open(strict=self._strict and self._gaps.is_idr, anew=True)
        else:
            self._context.flush_buffers()
        # In recordings that were joined, later pictures may have the same time stamps.
        self._counted.clear()

    def _is_good(self, frame: Any) -> bool:
        """Return whether to deliver a decoded picture. Otherwise, count the picture as corrupt or withheld."""
        if frame.pts is not None and frame.pts in self._counted:
            return False
        if frame.is_corrupt:
            self._damaged(frame, "the decoder concealed errors")
            return False
        if self._held or self._is_leading(frame.pts):
            self.withheld += 1
            return False
        self._decoded, self._run, self._failed_keys = True, 0, 0
        return True

    def _is_leading(self, stamp: int | None) -> bool:
        """Return whether a picture is displayed before the key frame at which decoding began anew."""
        return stamp is not None and self._first is not None and stamp < self._first

    def _note(self, stamp: int | None) -> None:
        """Note the time stamp of a picture that was counted as damaged, so that the picture is not delivered later."""
        if stamp is not None:
            self._counted.append(stamp)

    def _damaged(self, what: Any, reason: str) -> None:
        """Count a damaged packet or frame, and withhold pictures until the next key frame.

        Raises:
            FeedError: too many packets or key frames in a row were damaged.
        """
        self._note(what.pts)
        self.corrupt += 1
        self._run += 1
        self._failed_keys += bool(getattr(what, "is_keyframe", False) or getattr(what, "key_frame", False))
        self.hold()
        if self._strict and not self._decoded and self._failed_keys >= _STRICT_KEYS:
            self._become_lenient(reason)
        elif self._run >= _MAX_CORRUPT_RUN or (self._live and self._failed_keys >= _MAX_CORRUPT_KEYS):
            raise FeedError(f"{self._run} corrupt pictures in a row: {reason}")

    def _become_lenient(self, reason: str) -> None:
        """Replace the decoder by one that conceals errors, because some cameras break the standard in every picture."""
        self._strict, self._run = False, 0
        text = "feed %s: the decoder refuses every picture (%s); it now lets errors pass that it can conceal"
        _log.warning(text, self._feed, reason)
        self._context = self._open(strict=False, anew=True)


_ONE: dict[str, int] | None = None


def _one_thread() -> dict[str, int]:
    """Return the keyword argument that makes PyAV convert a picture on one thread; empty for an old PyAV without it."""
    global _ONE
    if _ONE is None:
        try:
            av.VideoFrame(2, 2, "yuv420p").reformat(format="bgr24", threads=1)
            _ONE = {"threads": 1}
        except TypeError:
            _ONE = {}
    return _ONE

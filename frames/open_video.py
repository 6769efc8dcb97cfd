"""Opening of video files, streams and devices with FFmpeg, and words for the reasons why that fails."""

from __future__ import annotations

import errno
from time import monotonic
from typing import Any

import av

from ..errors import FeedError
from .address import shown_address
from .hardware import accelerator
from .reader import SilentError, reason_of
from .settings import ReadSettings

__all__ = ["open_video"]


def open_video(location: str, kind: str, settings: ReadSettings) -> Any:
    """Open a file, stream or device, and return its PyAV container.

    Args:
        location: absolute path or URL.
        kind: ``"file"``, ``"stream"`` or ``"device"``.
        settings: transport, hardware, and the timeout of a stream or device.

    Raises:
        FeedError: the source cannot be opened; the message names it without its password.
    """
    seconds = settings.timeout_s
    timeout = None if kind == "file" else (seconds, seconds)
    form, options = None, {}
    if kind == "device":
        form = "v4l2"
    elif kind == "stream":
        # Twice the timeout of the whole call, so that the whole call times out first: its error tells silence from
        # other failures.
        microseconds = str(int(2 * seconds * 1e6))
        if location.lower().startswith("rtsp"):
            # The session describes the streams. FFmpeg would read three seconds of pictures to learn the rate.
            probe = {"analyzeduration": "200000", "fpsprobesize": "0"}
            options = {"timeout": microseconds, **probe, **_transport(settings)}
        else:
            options = {"rw_timeout": microseconds}
    shown, began = shown_address(location), monotonic()
    try:
        return av.open(
            location, "r", format=form, options=options, timeout=timeout, hwaccel=accelerator(settings.hardware)
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        late = timeout is not None and monotonic() - began > 0.9 * seconds
        if late:
            raise SilentError(f"cannot open {shown}: no answer for {seconds:g} s") from error
        reason = reason_of(error)
        if getattr(error, "errno", None) == errno.EPROTONOSUPPORT:
            reason = f"the camera does not offer RTSP over {settings.transport}"
        raise FeedError(f"cannot open {shown}: {reason}") from error
    except FeedError as error:
        raise FeedError(f"cannot open {shown}: {error}") from error


def _transport(settings: ReadSettings) -> dict[str, str]:
    """Return FFmpeg's options for the transport of RTSP.

    UDP loses packets, and then pictures are withheld, so ``auto`` asks for UDP only where TCP is refused.
    """
    if settings.transport == "auto":
        return {"rtsp_transport": "tcp+udp", "rtsp_flags": "prefer_tcp"}
    return {"rtsp_transport": settings.transport}

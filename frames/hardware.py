"""Choice of the device that decodes a video: the processor, or what FFmpeg offers on this machine."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import av

from ..bundles.manifest import Hardware
from ..errors import FeedError

__all__ = ["accelerator", "hardware_codec"]

_log = logging.getLogger(__name__)

_AUTO = ("cuda", "vaapi")
"""Devices that the setting ``hardware: auto`` tries for decoding videos, in this order."""


def accelerator(hardware: Hardware) -> Any:
    """Return the PyAV ``HWAccel`` to open a video with; None for the processor, and for ``v4l2``.

    A device that ``auto`` finds falls back to the processor for videos that the device cannot decode.

    Raises:
        FeedError: the device is not there, or this FFmpeg is built without it. ``auto`` logs one line instead.
    """
    if hardware in ("none", "v4l2"):
        return None
    if hardware == "auto":
        found = _find_device()
        return None if found is None else _hwaccel(found, fallback=True)
    reason = _reason(hardware)
    if reason is not None:
        raise FeedError(f"hardware: {hardware} cannot decode here: {reason}; use hardware: auto or none")
    return _hwaccel(hardware, fallback=False)


def hardware_codec(hardware: Hardware, codec: str) -> str | None:
    """Return the name of the FFmpeg decoder that ``hardware: v4l2`` uses for a codec; None to use the usual decoder.

    Raises:
        FeedError: this FFmpeg has no V4L2 decoder for the codec.
    """
    if hardware != "v4l2":
        return None
    name = f"{codec}_v4l2m2m"
    if name not in av.codecs_available:
        raise FeedError(f"hardware: v4l2 cannot decode {codec} here; use hardware: auto or none")
    return name


def _reason(name: str) -> str | None:
    """Return why a device cannot decode H.264 on this machine; None if it can."""
    try:
        from av.codec.hwaccel import hwdevices_available

        if name not in hwdevices_available():
            return "PyAV's FFmpeg is built without it"
        _hwaccel(name, fallback=False).create(av.Codec("h264", "r"))
    except (ImportError, NotImplementedError):
        return "PyAV's FFmpeg is built without it"
    except (av.FFmpegError, OSError, ValueError) as error:
        return f"the device cannot be opened ({getattr(error, 'strerror', None) or error})"
    return None


def _hwaccel(name: str, *, fallback: bool) -> Any:
    from av.codec.hwaccel import HWAccel

    return HWAccel(name, allow_software_fallback=fallback)


@cache
def _find_device() -> str | None:
    """Return the device that decodes videos with ``hardware: auto``, found once in a process; log a line and return
    None if there is none."""
    reasons = {}
    for name in _AUTO:
        reason = _reason(name)
        if reason is None:
            return name
        reasons[name] = reason
    text = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    _log.warning("hardware: auto: feeds are decoded on the processor (%s)", text)
    return None

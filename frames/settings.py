"""Settings by which a source is read: transport, timeout, hardware decoding, threads."""

from __future__ import annotations

from dataclasses import dataclass

from ..bundles.manifest import Hardware, Transport

__all__ = ["ReadSettings"]


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """Settings by which a source is opened and decoded. The defaults suit most cameras and all recordings."""

    transport: Transport = "auto"
    timeout_s: float = 5.0
    """Seconds without an answer or a picture after which a camera or stream counts as silent."""
    hardware: Hardware = "none"
    threads: int = 1
    """Maximum number of threads that decode one source."""

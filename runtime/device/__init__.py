"""Devices: memory, copies, streams and events. Each kind of device is one file, imported when that kind is used.

``cuda.py`` drives an NVIDIA card through pycuda. The tests have a fake device, which uses this machine's memory, and
threads as streams, so that all code that uses a device can run without a card.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Device", "DeviceArray", "Event", "Stream"]


@dataclass(frozen=True)
class DeviceArray:
    """Contiguous array in a device's memory: its address, dtype and shape."""

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Stream(Protocol):
    """Queue of work for a device, which does the work in the order of the requests while the caller goes on."""

    @property
    def handle(self) -> int:
        """Handle of the stream, for libraries that add work to the stream; for CUDA, a ``cudaStream_t``."""
        ...

    def wait(self, event: Event) -> None:
        """Delay all work that is added to the stream later until ``event`` has happened; the caller goes on."""
        ...

    def synchronize(self) -> None:
        """Block the caller until all work in the stream is done. Waiting may keep a core busy, for the shortest delay.

        Raises:
            BackendError: some of the work failed.
        """
        ...


class Event(Protocol):
    """Marker in a stream, which happens when the work in front of the marker is done."""

    def record(self, stream: Stream) -> None:
        """Put the event into a stream: the event happens when all work that the stream has so far is done."""
        ...

    @property
    def done(self) -> bool:
        """Whether the event has happened, or was never recorded."""
        ...

    def synchronize(self) -> None:
        """Block the caller, without using a core, until the event has happened.

        Raises:
            BackendError: work that was added to the stream before the event failed.
        """
        ...


class Device(Protocol):
    """Interface to one device. Sizes are in bytes, and addresses are those that kernels on the device take.

    Any thread may call the methods.
    """

    name: str
    target: str
    """Compute capability of the device, for which engines are built, such as ``sm86``; empty if there is none."""
    unified: bool
    """Whether the device and the CPU share one memory, as on a Jetson."""
    ort_provider: str
    """Name of ONNX Runtime's execution provider for the device."""
    ort_memory: str
    """ONNX Runtime's name for the device's memory, as IO binding takes it: ``cuda`` or ``cpu``."""
    ort_shares_activations: bool
    """Whether ONNX Runtime can keep the activations of all sessions in one memory arena on the device."""

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes (at least 1), and return their address, which is a multiple of 256.

        Raises:
            BackendError: not enough memory is free; the message says how many bytes are.
        """
        ...

    def free(self, address: int) -> None:
        """Release memory that :meth:`allocate` returned.

        Raises:
            BackendError: the memory was released already, or never allocated.
        """
        ...

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Allocate ``size`` bytes (at least 1) of page-locked host memory, which the device copies without the CPU.

        The memory is released when no array refers to it any more.

        Raises:
            BackendError: not enough memory is free.
        """
        ...

    def stream(self) -> Stream:
        """Create and return a stream (queue of work) on the device."""
        ...

    def event(self) -> Event:
        """Create and return an event (marker in a stream) on the device."""
        ...

    def upload(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        """Copy a C-contiguous array to a device address, in a stream. The array must not change before the copy ends.

        Raises:
            BackendError: the array is not contiguous, or the address is known to be wrong.
        """
        ...

    def download(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        """Copy from a device address to a C-contiguous array, in a stream. The array must not be read before the end.

        Raises:
            BackendError: the array is not contiguous, or the address is known to be wrong.
        """
        ...

    def move(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy ``size`` bytes from one address on the device to another, in a stream.

        Raises:
            BackendError: the two ranges overlap, or an address is known to be wrong.
        """
        ...

    def memory(self) -> tuple[int, int]:
        """Return the unused bytes and the total bytes of the device's memory."""
        ...

    def close(self) -> None:
        """Release all allocations; nothing may use them afterwards. Idempotent.

        Streams, events and page-locked memory are released when their Python objects are deleted.
        """
        ...

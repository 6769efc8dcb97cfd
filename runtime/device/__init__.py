"""Devices: memory, copies, streams and events. One file per kind of device, imported when it is used.

``cuda.py`` drives an NVIDIA card through pycuda. The tests have a double, made of this machine's memory with threads
for streams, so that all code above a device runs without a card.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Device", "DeviceArray", "Event", "Stream"]


@dataclass(frozen=True)
class DeviceArray:
    """Contiguous array in a device's memory."""

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Stream(Protocol):
    """Queue of device work, done in the order in which it was asked for, while the caller goes on."""

    @property
    def handle(self) -> int:
        """Number by which libraries that add work to the stream know it; for CUDA, a ``cudaStream_t``."""
        ...

    def wait(self, event: Event) -> None:
        """Hold back work that is asked for later until ``event`` has happened; the caller goes on."""
        ...

    def synchronize(self) -> None:
        """Block the caller until all work is done. A core may be kept busy meanwhile, for the shortest delay.

        Raises:
            BackendError: some of the work failed.
        """
        ...


class Event(Protocol):
    """Mark in a stream."""

    def record(self, stream: Stream) -> None:
        """Have the event happen when all work that the stream was asked for so far is done."""
        ...

    @property
    def done(self) -> bool:
        """Whether the event has happened, or was never recorded."""
        ...

    def synchronize(self) -> None:
        """Block the caller, asleep, until the event has happened.

        Raises:
            BackendError: work that was asked for before it failed.
        """
        ...


class Device(Protocol):
    """One device. Memory is counted in bytes; addresses are those that kernels take. Any thread may use it."""

    name: str
    target: str
    """Compute capability that engines are built for, such as ``sm86``; empty where there is none."""
    unified: bool
    """Whether the device reads the machine's own memory, as on a Jetson."""
    ort_provider: str
    """ONNX Runtime's execution provider for the device."""
    ort_memory: str
    """ONNX Runtime's name for the device's memory, as IO binding takes it: ``cuda`` or ``cpu``."""
    ort_shares_activations: bool
    """Whether ONNX Runtime keeps the activations of all sessions in one arena on the device."""

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` new bytes, at least 1; a multiple of 256.

        Raises:
            BackendError: not enough memory is free; the message says how much is.
        """
        ...

    def free(self, address: int) -> None:
        """Give back memory that :meth:`allocate` returned.

        Raises:
            BackendError: the memory was given back already, or never allocated.
        """
        ...

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Return ``size`` bytes, at least 1, of page-locked host memory, which the device copies without the CPU.

        The memory is given back when no array refers to it.

        Raises:
            BackendError: not enough memory is free.
        """
        ...

    def stream(self) -> Stream:
        """Make a stream."""
        ...

    def event(self) -> Event:
        """Make an event."""
        ...

    def upload(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        """Copy a C-contiguous array to an address. The array must not change until the copy is done.

        Raises:
            BackendError: the array is not contiguous, or the address is known to be wrong.
        """
        ...

    def download(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        """Copy from an address into a C-contiguous array. The array must not be read until the copy is done.

        Raises:
            BackendError: the array is not contiguous, or the address is known to be wrong.
        """
        ...

    def move(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy ``size`` bytes from one address on the device to another.

        Raises:
            BackendError: the two places overlap, or an address is known to be wrong.
        """
        ...

    def memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of the device's memory."""
        ...

    def close(self) -> None:
        """Give all allocations back; nothing may use them any more. Idempotent.

        Streams, events and page-locked memory are given back with their objects.
        """
        ...

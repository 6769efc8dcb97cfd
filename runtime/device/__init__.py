"""What a device arena needs of a device: memory, copies and their order. One file each, imported when it is used.

``cuda.py`` is a card, through pycuda; ``host.py`` is this machine's memory with threads for streams, so that all that
is built on a device runs, and is tested, without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Device", "DeviceArray", "Event", "Stream"]


@dataclass(frozen=True)
class DeviceArray:
    """An array in a device's memory."""

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Stream(Protocol):
    """Work that is done in the order in which it was asked for, while the caller goes on."""

    @property
    def handle(self) -> int:
        """What libraries that put work into it are given: of CUDA, a ``cudaStream_t``."""
        ...

    def wait(self, event: Event) -> None:
        """Begin nothing that is asked for later before ``event`` has come; the caller goes on."""
        ...

    def synchronize(self) -> None:
        """Block the caller until all is done; at the least delay, so a core may be busy meanwhile.

        Raises:
            BackendError: something that was asked for failed.
        """
        ...


class Event(Protocol):
    """A place in a stream."""

    def record(self, stream: Stream) -> None:
        """It comes when all that was asked of the stream so far is done."""
        ...

    @property
    def done(self) -> bool:
        """Whether it has come, or was never recorded."""
        ...

    def synchronize(self) -> None:
        """Block the caller until it has come; asleep.

        Raises:
            BackendError: something that was asked for before it failed.
        """
        ...


class Device(Protocol):
    """One device. Memory is bytes; addresses are what kernels take. May be used from any thread."""

    name: str
    target: str
    """What engines are built for: the compute capability, as ``sm86``. Of the machine itself nothing."""
    unified: bool
    """Whether the device reads the machine's own memory, as on a Jetson."""

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes, at least 1, on a multiple of 256.

        Raises:
            BackendError: there is not enough; the message says how much there is.
        """
        ...

    def free(self, address: int) -> None:
        """Give back what :meth:`allocate` gave.

        Raises:
            BackendError: it was given back already, or never allocated.
        """
        ...

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """``size`` bytes, at least 1, of the machine's memory that copies do not have to wait for.

        Given back with the array.

        Raises:
            BackendError: there is not enough.
        """
        ...

    def stream(self) -> Stream: ...

    def event(self) -> Event: ...

    def upload(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        """Copy a C-contiguous array, which must stay as it is until that is done, to an address.

        Raises:
            BackendError: it is not contiguous, or the address is known to be wrong.
        """
        ...

    def download(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        """Copy from an address into a C-contiguous array, which is not to be read before that is done.

        Raises:
            BackendError: as of :meth:`upload`.
        """
        ...

    def move(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy ``size`` bytes on the device.

        Raises:
            BackendError: the two places overlap, or as of :meth:`upload`.
        """
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and that there are."""
        ...

    def close(self) -> None:
        """Give all allocations back, which nothing may use any more; the rest goes with its objects. Idempotent."""
        ...

"""Test double of a device: this machine's memory, with threads for streams. It is strict, so that mistakes show up."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, cast
from weakref import WeakSet

import numpy as np
import psutil
from numpy.typing import NDArray

from gemel.errors import BackendError, first_line
from gemel.runtime.device import Event, Stream

__all__ = ["HostDevice", "HostEvent", "HostStream"]

_ALIGNMENT = 256
_GARBAGE = 0xA5

Bytes = NDArray[np.uint8]


class HostStream:
    """Thread as a stream, see :class:`gemel.runtime.device.Stream`. The first failure stops it, as on a card."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "gemel-stream")
        self._error: Exception | None = None

    @property
    def handle(self) -> int:
        return id(self)

    def submit(self, work: Callable[[], object]) -> Future[None]:
        """Queue work behind all that was asked for before.

        Returns:
            A future that is done with the work; its exception is a BackendError.
        """
        return self._thread.submit(self._do, work)

    def wait(self, event: Event) -> None:
        # The event may be recorded again before the stream gets here; only the recording so far counts.
        coming = cast(HostEvent, event).coming
        if coming is not None:
            self.submit(coming.result)

    def synchronize(self) -> None:
        self.submit(lambda: None).result()

    def close(self) -> None:
        """Do the work that was asked for, and end the thread."""
        self._thread.shutdown()

    def _do(self, work: Callable[[], object]) -> None:
        if self._error is None:
            try:
                work()
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise BackendError(f"host: a stream failed: {first_line(self._error)}") from self._error


class HostEvent:
    """Event in a :class:`HostStream`, see :class:`gemel.runtime.device.Event`."""

    def __init__(self) -> None:
        self.coming: Future[None] | None = None
        """Future that is done when the event has happened; None before the event is recorded."""

    def record(self, stream: Stream) -> None:
        self.coming = cast(HostStream, stream).submit(lambda: None)

    @property
    def done(self) -> bool:
        return self.coming is None or self.coming.done()

    def synchronize(self) -> None:
        if self.coming is not None:
            self.coming.result()


class HostDevice:
    """Device made of this machine's memory, see :class:`gemel.runtime.device.Device`.

    Every copy must lie within one allocation, both when it is asked for and when its turn comes. Memory is full of
    garbage until something is written to it.

    Args:
        capacity: bytes that may be allocated at once; the machine's memory when left out.
        unified: whether the device claims to read the machine's own memory.
    """

    name = "host"
    target = ""
    ort_provider = "CPUExecutionProvider"
    ort_memory = "cpu"
    # ONNX Runtime has one such arena per process and device; on a CPU, the ort-cpu backend makes it.
    ort_shares_activations = False

    def __init__(self, capacity: int | None = None, *, unified: bool = False) -> None:
        self.unified = unified
        self._capacity = capacity
        self._allocations: dict[int, Bytes] = {}
        self._streams: WeakSet[HostStream] = WeakSet()
        self._lock = Lock()

    def allocate(self, size: int) -> int:
        if size < 1:
            raise BackendError(f"host: {size} bytes cannot be allocated")
        with self._lock:
            free, total = self._memory()
            if size > free:
                raise BackendError(f"host: {size} bytes are asked for, and {free} of {total} are free")
            room = np.full(size + _ALIGNMENT, _GARBAGE, np.uint8)
            memory = room[-room.ctypes.data % _ALIGNMENT :][:size]
            self._allocations[memory.ctypes.data] = memory
            return memory.ctypes.data

    def free(self, address: int) -> None:
        with self._lock:
            if self._allocations.pop(address, None) is None:
                raise BackendError(f"host: nothing is allocated at {address:#x}")

    def pinned(self, size: int) -> Bytes:
        return np.full(size, _GARBAGE, np.uint8)

    def stream(self) -> HostStream:
        stream = HostStream()
        self._streams.add(stream)
        return stream

    def event(self) -> HostEvent:
        return HostEvent()

    def upload(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        data = _bytes(source)
        _copy(lambda: self._at(target, data.nbytes), lambda: data, stream)

    def download(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        data = _bytes(target)
        _copy(lambda: data, lambda: self._at(source, data.nbytes), stream)

    def move(self, target: int, source: int, size: int, stream: Stream) -> None:
        if abs(target - source) < size:
            raise BackendError(f"host: {size} bytes at {source:#x} and at {target:#x} overlap")
        _copy(lambda: self._at(target, size), lambda: self._at(source, size), stream)

    def memory(self) -> tuple[int, int]:
        with self._lock:
            return self._memory()

    def close(self) -> None:
        for stream in list(self._streams):
            stream.close()
        self._allocations.clear()

    def _memory(self) -> tuple[int, int]:
        if self._capacity is None:
            machine = psutil.virtual_memory()
            return machine.available, machine.total
        return self._capacity - sum(len(memory) for memory in self._allocations.values()), self._capacity

    def _at(self, address: int, size: int) -> Bytes:
        with self._lock:
            for begin, memory in self._allocations.items():
                if begin <= address and address + size <= begin + len(memory):
                    return memory[address - begin :][:size]
        raise BackendError(f"host: {size} bytes at {address:#x} are not within an allocation")


def _bytes(array: NDArray[Any]) -> Bytes:
    if not array.flags.c_contiguous:
        raise BackendError(f"host: an array of shape {array.shape} is not contiguous")
    return array.reshape(-1).view(np.uint8)


def _copy(target: Callable[[], Bytes], source: Callable[[], Bytes], stream: Stream) -> None:
    def copy() -> None:
        target()[:] = source()

    # The caller is told at once of an address that is wrong already.
    for place in (target, source):
        place()
    cast(HostStream, stream).submit(copy)

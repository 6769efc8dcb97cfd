"""NVIDIA card as a device, driven through pycuda.

All work happens in the card's primary context. ONNX Runtime and TensorRT use the same context, so they can use our
addresses and streams. The context is retained once, until the process ends, as these libraries do.

Each call makes the context current on the calling thread and removes it afterwards. If the context is still current on
a thread that ends, pycuda ends the process. If an object is deleted on a thread where the context is not current,
pycuda leaks the object.
"""

from __future__ import annotations

import atexit
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError, GemelError, first_line
from . import Event, Stream

__all__ = ["CudaDevice", "CudaEvent", "CudaStream"]

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING; pycuda has no name for it
_WITHOUT = "; --backend ort-cpu works without"


def _driver() -> Any:
    """Import and return ``pycuda.driver``.

    Raises:
        BackendError: pycuda or the NVIDIA driver is not installed, or pycuda cannot be loaded.
    """
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("pycuda"):
            what = "pycuda is not installed: pip install 'pycuda>=2025.1.2', which needs the CUDA toolkit (nvcc)"
        elif "libcuda.so" in str(error):
            what = f"no NVIDIA driver: nvidia-smi must work ({first_line(error)})"
        else:
            what = f"pycuda cannot be loaded: {first_line(error)}"
        raise BackendError(f"cuda: {what}{_WITHOUT}") from error


@cache
def _card() -> tuple[Any, Any]:
    """Return the first card and its primary context.

    Raises:
        BackendError: no card can be used.
    """
    driver = _driver()
    try:
        driver.init()
        card = driver.Device(0)
        context = card.retain_primary_context()
    except driver.Error as error:
        what = f"no NVIDIA card can be used: nvidia-smi must work ({first_line(error)})"
        raise BackendError(f"cuda: {what}{_WITHOUT}") from error
    # pycuda's destructor would take the context for one of its own and complain.
    atexit.register(context.detach)
    return card, context


class _Resource:
    """Owner of a pycuda object, which is released when the owner is deleted.

    Args:
        device: device that the pycuda object belongs to.
        make: function that creates the pycuda object, called with ``pycuda.driver``.
    """

    def __init__(self, device: CudaDevice, make: Callable[[Any], Any]) -> None:
        self._device = device
        with device.current() as driver:
            self.raw = make(driver)

    def __del__(self) -> None:
        # There is no object if creating it failed, and no card any more while the process ends.
        with suppress(BackendError), self._device.current():
            del self.raw


class CudaStream(_Resource):
    """CUDA stream that does not wait for CUDA's default stream, see :class:`gemel.runtime.device.Stream`."""

    def __init__(self, device: CudaDevice) -> None:
        super().__init__(device, lambda driver: driver.Stream(_NON_BLOCKING))

    @property
    def handle(self) -> int:
        return int(self.raw.handle)

    def wait(self, event: Event) -> None:
        with self._device.current():
            self.raw.wait_for_event(_raw(event))

    def synchronize(self) -> None:
        with self._device.current():
            self.raw.synchronize()


class CudaEvent(_Resource):
    """CUDA event, see :class:`gemel.runtime.device.Event`."""

    def __init__(self, device: CudaDevice) -> None:
        def make(driver: Any) -> Any:
            flags = driver.event_flags
            return driver.Event(int(flags.BLOCKING_SYNC) | int(flags.DISABLE_TIMING))

        super().__init__(device, make)

    def record(self, stream: Stream) -> None:
        with self._device.current():
            self.raw.record(_raw(stream))

    @property
    def done(self) -> bool:
        with self._device.current():
            return bool(self.raw.query())

    def synchronize(self) -> None:
        with self._device.current():
            self.raw.synchronize()


class _Pinned(_Resource):
    """Owner of page-locked memory; arrays that view the memory keep it alive."""

    def __init__(self, device: CudaDevice, size: int) -> None:
        super().__init__(device, lambda driver: driver.pagelocked_empty(size, np.uint8))
        self.__array_interface__ = self.raw.__array_interface__


class CudaDevice:
    """First NVIDIA card that CUDA lists, see :class:`gemel.runtime.device.Device`.

    Raises:
        BackendError: pycuda, the driver or a card is missing.
    """

    ort_provider = "CUDAExecutionProvider"
    ort_memory = "cuda"
    ort_shares_activations = True

    def __init__(self) -> None:
        self._driver = _driver()
        card, self._context = _card()
        self._allocations: dict[int, Any] = {}
        self.name = str(card.name())
        self.target = "sm{}{}".format(*card.compute_capability())
        self.unified = bool(card.get_attribute(self._driver.device_attribute.INTEGRATED))

    @contextmanager
    def current(self) -> Iterator[Any]:
        """Make the card's context current on the calling thread inside a ``with`` block, and yield ``pycuda.driver``.

        Raises:
            BackendError: pycuda raised an error inside the ``with`` block.
        """
        try:
            self._context.push()
            try:
                yield self._driver
            finally:
                self._context.pop()
        except GemelError:
            raise
        except Exception as error:
            raise BackendError(f"{self.name}: {first_line(error)}") from error

    def allocate(self, size: int) -> int:
        with self.current() as driver:
            try:
                memory = driver.mem_alloc(size)
            except driver.MemoryError as error:
                free, total = driver.mem_get_info()
                raise BackendError(
                    f"{self.name}: {size} bytes are asked for, and {free} of {total} are free"
                ) from error
        address = int(memory)
        self._allocations[address] = memory
        return address

    def free(self, address: int) -> None:
        memory = self._allocations.pop(address, None)
        if memory is None:
            raise BackendError(f"{self.name}: nothing is allocated at {address:#x}")
        with self.current():
            memory.free()

    def pinned(self, size: int) -> NDArray[np.uint8]:
        return np.asarray(_Pinned(self, size))

    def stream(self) -> CudaStream:
        return CudaStream(self)

    def event(self) -> CudaEvent:
        return CudaEvent(self)

    def upload(self, target: int, source: NDArray[Any], stream: Stream) -> None:
        with self.current() as driver:
            driver.memcpy_htod_async(target, source, _raw(stream))

    def download(self, target: NDArray[Any], source: int, stream: Stream) -> None:
        with self.current() as driver:
            driver.memcpy_dtoh_async(target, source, _raw(stream))

    def move(self, target: int, source: int, size: int, stream: Stream) -> None:
        if abs(target - source) < size:
            raise BackendError(f"{self.name}: {size} bytes at {source:#x} and at {target:#x} overlap")
        with self.current() as driver:
            driver.memcpy_dtod_async(target, source, size, _raw(stream))

    def memory(self) -> tuple[int, int]:
        with self.current() as driver:
            free, total = driver.mem_get_info()
        return int(free), int(total)

    def close(self) -> None:
        for address in list(self._allocations):
            self.free(address)


def _raw(resource: Stream | Event) -> Any:
    return cast(_Resource, resource).raw

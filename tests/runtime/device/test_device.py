"""Tests of devices: the host double keeps the protocol strictly; a card that cannot be used gives one clear line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import partial
from threading import Event
from time import sleep

import numpy as np
import psutil
import pytest
from device_protocol import DeviceProtocol
from host_device import HostDevice

from gemel.errors import BackendError
from gemel.runtime.device import Device
from gemel.runtime.device.cuda import CudaDevice


class TestHost(DeviceProtocol):
    @pytest.fixture
    def device(self) -> Iterator[Device]:
        device = HostDevice(1 << 28)
        yield device
        device.close()


@pytest.fixture
def device() -> Iterator[HostDevice]:
    device = HostDevice(10_000)
    yield device
    device.close()


def test_capacity_is_not_exceeded_by_a_byte(device: HostDevice) -> None:
    first = device.allocate(9_999)
    assert device.memory() == (1, 10_000)
    with pytest.raises(BackendError, match="host: 2 bytes are asked for, and 1 of 10000 are free"):
        device.allocate(2)
    device.allocate(1)
    device.free(first)
    assert device.memory() == (9_999, 10_000)


def test_without_a_capacity_it_is_the_machine() -> None:
    device = HostDevice()
    free, total = device.memory()
    assert 0 < free < total == psutil.virtual_memory().total
    with pytest.raises(BackendError, match=f"of {total} are free"):
        device.allocate(total)


def test_copies_stay_within_an_allocation(device: HostDevice) -> None:
    stream, data = device.stream(), np.zeros(100, np.uint8)
    address, other = device.allocate(100), device.allocate(100)
    for begin in (address - 1, address + 1, address + 100, 0):
        with pytest.raises(BackendError, match="not within an allocation"):
            device.upload(begin, data, stream)
        with pytest.raises(BackendError, match="not within an allocation"):
            device.download(data, begin, stream)
        for target, source in ((begin, other), (other, begin)):
            with pytest.raises(BackendError, match="not within an allocation"):
                device.move(target, source, 100, stream)
    device.free(address)
    with pytest.raises(BackendError, match="not within an allocation"):
        device.upload(address, data, stream)
    stream.synchronize()


def test_the_caller_goes_on_and_failures_come_out_later(device: HostDevice) -> None:
    stream, event, go = device.stream(), device.event(), Event()
    address, came = device.allocate(100), np.zeros(100, np.uint8)
    stream.submit(lambda: go.wait(10))
    device.upload(address, np.ones(100, np.uint8), stream)
    event.record(stream)
    device.download(came, address, stream)
    assert not event.done and not came.any()
    # Freed before the copy ran: on a card the memory could belong to someone else by then.
    device.free(address)
    go.set()
    later: list[int] = []
    stream.submit(partial(later.append, 1))
    for _ in range(2):
        with pytest.raises(BackendError, match=r"a stream failed: host: 100 bytes at .* are not within an allocation"):
            stream.synchronize()
    assert not later
    with pytest.raises(BackendError, match="a stream failed"):
        event.synchronize()
    other = device.stream()
    other.wait(event)
    with pytest.raises(BackendError, match="a stream failed"):
        other.synchronize()


def test_memory_begins_as_garbage(device: HostDevice) -> None:
    came, stream = np.zeros(1000, np.uint8), device.stream()
    device.download(came, device.allocate(1000), stream)
    stream.synchronize()
    assert came.all() and device.pinned(1000).all()


def test_closing_ends_streams_and_frees() -> None:
    device = HostDevice(1000)
    done: list[int] = []
    device.allocate(1000)
    stream = device.stream()
    for number in range(3):
        stream.submit(lambda: sleep(0.01))
        stream.submit(partial(done.append, number))
    device.close()
    assert (done, device.memory()) == ([0, 1, 2], (1000, 1000))
    with pytest.raises(RuntimeError, match="after shutdown"):
        stream.synchronize()


def test_without_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(BackendError) as caught:
        CudaDevice()
    assert str(caught.value) == (
        "cuda: pycuda is not installed: pip install 'pycuda>=2025.1.2', which needs the CUDA toolkit (nvcc);"
        " --backend ort-cpu works without"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ImportError("libcuda.so.1: cannot open shared object file: No such file or directory"),
            "cuda: no NVIDIA driver: nvidia-smi must work (libcuda.so.1: cannot open",
        ),
        (ImportError("libcurand.so.10: cannot open\nmore"), "cuda: pycuda cannot be loaded: libcurand.so.10: cannot"),
    ],
)
def test_pycuda_that_cannot_be_loaded(error: ImportError, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(BackendError) as caught:
        CudaDevice()
    assert str(caught.value).startswith(said) and str(caught.value).endswith("; --backend ort-cpu works without")
    assert "\n" not in str(caught.value)

"""Tests of the inputs that stay on a device: when they are uploaded, and when their memory is given back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from on_devices import IMAGES, Device

from gemel.errors import BackendError
from gemel.runtime.backends import device_frames
from gemel.runtime.backends.device_frames import DeviceFrames
from gemel.runtime.device import DeviceArray
from gemel.runtime.engines.executables import NoRoomError

CAPACITY = 1 << 20


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device(capacity=CAPACITY)
    yield device
    device.close()


def content(device: Device, place: DeviceArray) -> NDArray[Any]:
    stream, found = device.stream(), np.empty(place.shape, place.dtype)
    device.download(found, place.address, stream)
    stream.synchronize()
    return found


def test_a_frame_is_uploaded_once(device: Device) -> None:
    stream = device.stream()
    frames = DeviceFrames(device, stream)
    first, equal = IMAGES[:1].copy(), IMAGES[:1].copy()
    place = frames.frame(first)
    stream.synchronize()
    np.testing.assert_array_equal(content(device, place), first)
    assert frames.frame(first) == place
    # Another array is another frame, even with equal values.
    assert frames.frame(equal).address != place.address
    assert device.uploads == [first.nbytes, equal.nbytes]


def test_the_least_recent_frame_makes_room(device: Device) -> None:
    stream = device.stream()
    frames = DeviceFrames(device, stream)
    images = [IMAGES[:1] + index for index in range(device_frames._FRAMES + 1)]
    for image in images[:-1]:
        frames.frame(image)
    stream.synchronize()
    frames.frame(images[0])
    frames.frame(images[-1])
    device.uploads.clear()
    frames.frame(images[0])
    assert not device.uploads
    frames.frame(images[1])
    assert len(device.uploads) == 1
    assert device.memory()[0] == CAPACITY - device_frames._FRAMES * images[0].nbytes


def test_a_frame_that_could_not_be_uploaded_takes_no_memory(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = DeviceFrames(device, device.stream())

    def refuse(*arguments: Any) -> None:
        raise BackendError("no upload")

    with monkeypatch.context() as patch:
        patch.setattr(device, "upload", refuse)
        with pytest.raises(BackendError, match="no upload"):
            frames.frame(IMAGES[:1])
    assert device.memory()[0] == CAPACITY
    frames.frame(IMAGES[:1])


def test_an_input_keeps_its_memory_until_it_grows(device: Device) -> None:
    stream = device.stream()
    frames = DeviceFrames(device, stream)
    values = np.arange(100, dtype=np.float32)
    place = frames.pass_on("program", "x", values)
    assert frames.pass_on("program", "x", values[:50]) == DeviceArray(place.address, values.dtype, (50,))
    assert frames.pass_on("program", "y", values).address != place.address
    longer = np.arange(200, dtype=np.float32)
    stream.synchronize()
    place = frames.pass_on("program", "x", longer)
    stream.synchronize()
    np.testing.assert_array_equal(content(device, place), longer)
    assert device.memory()[0] == CAPACITY - longer.nbytes - values.nbytes
    assert frames.pass_on("other", "x", values[:0]).shape == (0,)


def test_memory_is_given_back(device: Device) -> None:
    stream = device.stream()
    frames = DeviceFrames(device, stream)
    frames.frame(IMAGES[:1])
    frames.pass_on("program", "x", IMAGES)
    stream.synchronize()
    frames.forget()
    assert device.memory()[0] == CAPACITY - IMAGES.nbytes
    frames.close()
    frames.close()
    assert device.memory()[0] == CAPACITY


def test_too_little_memory(device: Device) -> None:
    frames = DeviceFrames(device, device.stream())
    with pytest.raises(NoRoomError, match="bytes are asked for"):
        frames.frame(np.zeros(CAPACITY + 1, np.uint8))

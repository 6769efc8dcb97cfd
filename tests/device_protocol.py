"""Tests that every device must pass: a test class inherits from :class:`DeviceProtocol` and provides a ``device``."""

from __future__ import annotations

from itertools import pairwise
from threading import Thread
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.errors import BackendError
from gemel.runtime.device import Device

SIZE = 3 << 20


def noise(size: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


class DeviceProtocol:
    """Tests of :class:`gemel.runtime.device.Device`."""

    def test_what_goes_up_comes_down(self, device: Device) -> None:
        stream = device.stream()
        sent = device.pinned(SIZE)
        sent[:] = noise(SIZE)
        address = device.allocate(SIZE)
        device.upload(address, sent, stream)
        for came in (device.pinned(SIZE), np.empty(SIZE, np.uint8)):
            device.download(came, address, stream)
            stream.synchronize()
            np.testing.assert_array_equal(came, sent)

    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
    def test_arrays_of_any_kind_even_read_only(self, device: Device, dtype: type) -> None:
        stream = device.stream()
        sent: NDArray[Any] = (noise(3 * 5 * 7) > 127).astype(dtype).reshape(3, 5, 7)
        sent.flags.writeable = False
        address = device.allocate(sent.nbytes)
        device.upload(address, sent, stream)
        came = np.empty_like(sent)
        device.download(came, address, stream)
        stream.synchronize()
        np.testing.assert_array_equal(came, sent)
        with pytest.raises(BackendError, match="contiguous"):
            device.upload(address, sent[:, ::2, ::2], stream)

    def test_a_part_of_an_allocation(self, device: Device) -> None:
        stream, data = device.stream(), noise(1000)
        address = device.allocate(1000)
        device.upload(address, data, stream)
        device.upload(address + 100, data[:50], stream)
        device.move(address + 700, address + 300, 250, stream)
        expected = data.copy()
        expected[100:150] = data[:50]
        expected[700:950] = expected[300:550]
        came = np.empty(1000, np.uint8)
        device.download(came, address, stream)
        stream.synchronize()
        np.testing.assert_array_equal(came, expected)

    def test_places_that_overlap_are_not_copied(self, device: Device) -> None:
        stream = device.stream()
        address = device.allocate(1000)
        for target, source in ((0, 499), (499, 0), (0, 0)):
            with pytest.raises(BackendError, match="overlap"):
                device.move(address + target, address + source, 500, stream)
        device.move(address, address + 500, 500, stream)
        stream.synchronize()

    def test_addresses_are_aligned_and_apart(self, device: Device) -> None:
        sizes = [1, 255, 256, 257, 100_000]
        places = sorted((device.allocate(size), size) for size in sizes)
        assert all(address % 256 == 0 for address, _ in places)
        assert all(first + size <= second for (first, size), (second, _) in pairwise(places))

    def test_what_is_freed_is_gone(self, device: Device) -> None:
        address = device.allocate(1000)
        device.free(address)
        with pytest.raises(BackendError, match="nothing is allocated"):
            device.free(address)
        with pytest.raises(BackendError, match="nothing is allocated"):
            device.free(device.allocate(1000) + 1)

    def test_more_than_there_is(self, device: Device) -> None:
        free, total = device.memory()
        assert 0 < free <= total
        with pytest.raises(BackendError, match=rf"{total + 1} bytes are asked for, and \d+ of {total} are free"):
            device.allocate(total + 1)
        with pytest.raises(BackendError):
            device.allocate(0)

    def test_memory_is_given_back(self, device: Device) -> None:
        size = 64 << 20
        addresses = [device.allocate(size)]
        less, _ = device.memory()
        device.free(addresses.pop())
        more, _ = device.memory()
        # Other processes may take or free memory meanwhile.
        assert more - less > size // 2

    def test_events_come_in_turn(self, device: Device) -> None:
        one, other, event = device.stream(), device.stream(), device.event()
        assert event.done
        event.synchronize()
        data, address = noise(SIZE), device.allocate(SIZE)
        came = np.zeros(SIZE, np.uint8)
        for turn in range(20):
            data = noise(SIZE, turn)
            device.upload(address, data, one)
            event.record(one)
            other.wait(event)
            device.download(came, address, other)
            other.synchronize()
            assert event.done
            np.testing.assert_array_equal(came, data)

    def test_a_stream_waits_for_the_event_as_it_was(self, device: Device) -> None:
        one, other, event = device.stream(), device.stream(), device.event()
        other.wait(event)  # returns at once, because the event was never recorded
        event.record(one)
        other.wait(event)
        event.record(other)  # the stream would wait for itself if it waited for this recording
        other.synchronize()

    def test_streams_are_told_apart(self, device: Device) -> None:
        one, other = device.stream(), device.stream()
        assert one.handle and other.handle and one.handle != other.handle

    def test_any_thread_may_use_it(self, device: Device) -> None:
        stream, event = device.stream(), device.event()
        data, came = noise(SIZE), np.zeros(SIZE, np.uint8)
        found: list[object] = []

        def work() -> None:
            try:
                buffer = device.pinned(SIZE)
                buffer[:] = data
                address = device.allocate(SIZE)
                device.upload(address, buffer, stream)
                device.download(came, address, stream)
                event.record(stream)
                event.synchronize()
                device.free(address)
                found.append(device.stream())
            except Exception as error:
                found.append(error)

        # Threads run one after the other; streams made on them are deleted on another one.
        for _ in range(3):
            came[:] = 0
            thread = Thread(target=work)
            thread.start()
            thread.join(60)
            assert not any(isinstance(each, Exception) for each in found), found
            np.testing.assert_array_equal(came, data)
        found.clear()

    def test_pinned_memory_outlives_its_first_name(self, device: Device) -> None:
        part = device.pinned(SIZE)[SIZE // 2 :]
        data = noise(len(part))
        part[:] = data
        again = device.pinned(SIZE)
        again[:] = 0
        np.testing.assert_array_equal(part, data)

    def test_closing_gives_back_and_may_be_repeated(self, device: Device) -> None:
        address = device.allocate(1000)
        device.close()
        with pytest.raises(BackendError, match="nothing is allocated"):
            device.free(address)
        device.close()

"""Inputs of programs on a device: recent frames, batches, and arrays that one stage of a model passes to another."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from numpy.typing import NDArray

from ..device import Device, DeviceArray, Stream
from ..engines.executables import allocate

__all__ = ["DeviceFrames"]

_FRAMES = 8
"""Maximum number of recent frames to keep on the device, so that the queries of a feed upload each frame once."""


class DeviceFrames:
    """Device memory for the inputs of programs.

    Uploading an input may free the memory of older inputs. The caller must therefore wait for each run to end before
    the inputs of the next run are uploaded.

    Args:
        device: device that holds the inputs.
        stream: stream in which uploads and runs are ordered.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        # The key is the array's id: every query that looks at a frame gets the same prepared array. Keeping the array
        # keeps its id from being used again. The value also holds the frame's device address.
        self._frames: OrderedDict[int, tuple[NDArray[Any], int]] = OrderedDict()
        self._blocks: dict[tuple[str, str], tuple[int, int]] = {}
        """(program, input) -> size in bytes and device address of the memory that is kept for that input."""

    def frame(self, array: NDArray[Any]) -> DeviceArray:
        """Return a frame's array on the device. The frame is uploaded unless it is one of the recent frames there.

        Args:
            array: C-contiguous prepared frame, which must never change.

        Raises:
            NoRoomError: the device has too little free memory.
        """
        if id(array) not in self._frames:
            if len(self._frames) == _FRAMES:
                _, (_, oldest) = self._frames.popitem(last=False)
                self._device.free(oldest)
            address = allocate(self._device, array.nbytes)
            try:
                self._device.upload(address, array, self._stream)
            except BaseException:
                self._device.free(address)
                raise
            self._frames[id(array)] = (array, address)
        self._frames.move_to_end(id(array))
        return DeviceArray(self._frames[id(array)][1], array.dtype, array.shape)

    def pass_on(self, program: str, name: str, array: NDArray[Any]) -> DeviceArray:
        """Upload an array that is used once (a batch, or an output of another stage), and return it on the device.

        The uploaded array is valid until the next call for the same input of the same program.

        Args:
            program: program that takes the array as an input.
            name: name of the input.
            array: C-contiguous array to upload.

        Raises:
            NoRoomError: the device has too little free memory.
        """
        size, address = self._blocks.get((program, name), (0, 0))
        if size < array.nbytes:
            if size:
                del self._blocks[program, name]
                self._device.free(address)
            address = allocate(self._device, array.nbytes)
            self._blocks[program, name] = (array.nbytes, address)
        if array.nbytes:
            self._device.upload(address, array, self._stream)
        return DeviceArray(address, array.dtype, array.shape)

    def forget(self) -> None:
        """Free the device memory of all frames; no work on the device may be using them."""
        for _, address in self._frames.values():
            self._device.free(address)
        self._frames.clear()

    def close(self) -> None:
        """Free the device memory of all inputs. Idempotent."""
        self.forget()
        for _, address in self._blocks.values():
            self._device.free(address)
        self._blocks.clear()

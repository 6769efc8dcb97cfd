"""Base class of the backends on a device: bind weights by their device addresses, and run programs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...bundles.budget import budget
from ...bundles.manifest import Stage
from ...bundles.reader import Bundle
from ...bundles.verified import verify_once
from ...errors import BackendError, GemelError, first_line
from ..device import Device, DeviceArray, Stream
from ..device_cache import folder_for
from ..engines.executables import NoRoomError
from ..memory.arena_stats import ArenaStats
from ..memory.device_arena import DeviceArena
from ..memory.loading import Loading
from .arena_backend import ArenaBackend
from .device_frames import DeviceFrames
from .device_weights import device_weights
from .on_host import OnHost

__all__ = ["Array", "Executable", "OnDevice", "allowed", "open_on_card"]

_B = TypeVar("_B", bound="OnDevice")

Array = NDArray[Any]
"""Array in this machine's memory, not in a device's."""


class Executable(Protocol):
    """Program that is ready to run on a device. All its work goes through one stream."""

    def bind(self, tensors: tuple[str, ...], weights: Sequence[DeviceArray]) -> None:
        """Bind weights to the program for all runs until the next call.

        Args:
            tensors: ids of the weights, in the program's order.
            weights: the weights as arrays on the device, in the same order.

        Raises:
            BackendError: the program does not take these weights.
        """
        ...

    def run(self, inputs: Mapping[str, DeviceArray]) -> dict[str, Array]:
        """Run the program, wait until the run has ended, and return outputs by name, in this machine's memory."""
        ...


class OnDevice(ArenaBackend[DeviceArena]):
    """Backend whose weights lie in a device's memory, see :class:`gemel.runtime.backends.Backend`.

    The mode ``constant`` of the manifest is for CPUs; a device runs every model with weights from the arena.

    Args:
        bundle: an open bundle.
        device: device that runs the models. The backend closes the device.
        memory: memory setting that gives the budget for weights; see :mod:`gemel.bundles.budget`.
        threads: maximum number of CPU threads for work that the device cannot do.
        loading: settings of how weights are loaded.
        copies: program -> bytes of the program's private copy of weights, for programs that keep one. A copy stays in
            memory from its first use on. The budget has room for all copies; the arena gets the rest.

    Raises:
        InputError: the budget is too small.
        BackendError: the device has too little free memory.
        BundleError: a file of the bundle is damaged.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        memory: str | int,
        threads: int,
        loading: Loading,
        copies: Mapping[str, int] | None = None,
    ) -> None:
        self.threads, self.loading = threads, loading
        self._bundle, self.device = bundle, device
        self._copies = dict(copies or {})
        private, content = sum(self._copies.values()), bundle.manifest
        self.budget = allowed(bundle, memory, private)
        arena = self.budget - private
        blob = bundle.file(content.blob)
        self._held = device_weights(content)
        # The device reads the bundle's own weights. A damaged one would give other answers, silently.
        files = {bundle.file(name): spec.sha256 for name, spec in content.files.items()}
        verify_once(files, folder_for(bundle, "verified"))
        super().__init__(
            DeviceArena(
                *(device, blob, content.tensors, self._held.segments, arena, loading),
                forms=content.forms,
                computed=self._held.computed,
            )
        )
        self.stream: Stream = device.stream()
        self._frames = DeviceFrames(device, self.stream)
        self._executables: dict[str, Executable | OnHost] = {}
        self._bound: dict[str, Sequence[DeviceArray]] = {}
        """Program -> weights that are bound to the program."""
        self._weights: dict[tuple[str, str], tuple[list[int], Sequence[DeviceArray]]] = {}
        """(model, file of a stage) -> addresses of the model's segments, and the stage's weights at these addresses."""

    @property
    @abstractmethod
    def folder(self) -> Path: ...

    @abstractmethod
    def _open(self, stage: Stage) -> Executable | OnHost:
        """Open the program of a stage. All models with the same program share the returned object.

        Raises:
            BackendError: the device or its library refuses the program.
        """

    def segments_of(self, model: str) -> tuple[str, ...]:
        return self._held.segments_of[model]

    @property
    def private_bytes(self) -> int:
        """Bytes of the private copies of weights that opened programs hold, in addition to the arena."""
        return sum(size for program, size in self._copies.items() if program in self._executables)

    @property
    def stats(self) -> ArenaStats:
        # Private copies of weights are never dropped, so their bytes add to the peak of the arena.
        return replace(self.arena.stats, peak=self.arena.stats.peak + self.private_bytes)

    def activate(self, model: str) -> None:
        super().activate(model)
        try:
            for stage in self._bundle.manifest.models[model].stages.values():
                if stage.program not in self._executables:
                    self._executables[stage.program] = self._open(stage)
        except BaseException as error:
            self.release(model)
            if isinstance(error, OSError):
                # Files are read at their first use, and the user may delete a cache at any time.
                raise BackendError(f"model {model} cannot be opened: {first_line(error)}") from error
            raise

    def run(self, model: str, stage: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._check_active(model, stage)
        spec = self._bundle.manifest.models[model].stages[stage]
        executable = self._executables[spec.program]
        try:
            if isinstance(executable, OnHost):
                return executable.run(inputs)
            # The arena may not move weights that a run reads.
            with self.arena.running():
                self._bind(executable, model, spec)
                try:
                    return self._answer(executable, spec.program, stage, inputs)
                except NoRoomError:
                    # The frames of other queries can be uploaded again. Their uploads may still be under way.
                    self.stream.synchronize()
                    self._frames.forget()
                    return self._answer(executable, spec.program, stage, inputs)
        except GemelError:
            raise
        except Exception as error:
            raise BackendError(f"model {model}, stage {stage}: {first_line(error)}") from error

    def close(self) -> None:
        self._executables.clear()
        self._bound.clear()
        try:
            self._frames.close()
            super().close()
        finally:
            self.device.close()

    def _bind(self, executable: Executable, model: str, stage: Stage) -> None:
        """Bind a model's weights to a program, unless the weights are bound already, at the same addresses."""
        weights = self._where(model, stage)
        if self._bound.get(stage.program) is weights:
            return
        # If binding fails half way, the program has neither the old weights nor the new ones.
        self._bound.pop(stage.program, None)
        executable.bind(stage.weights, weights)
        self._bound[stage.program] = weights

    def _where(self, model: str, stage: Stage) -> Sequence[DeviceArray]:
        """Return a stage's weights as arrays on the device.

        If no segment has moved since the last call, the same sequence object is returned.
        """
        places = [self.arena.place(segment) for segment in self.segments_of(model)]
        known = self._weights.get((model, stage.file))
        if known is None or known[0] != places:
            known = self._weights[model, stage.file] = (places, [self._weight(tensor) for tensor in stage.weights])
        return known[1]

    def _answer(
        self, executable: Executable, program: str, stage: str, inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        return executable.run({name: self._upload(program, stage, name, array) for name, array in inputs.items()})

    def _upload(self, program: str, stage: str, name: str, array: Array) -> DeviceArray:
        array = np.ascontiguousarray(array)
        # A batch is an array of its own each time, so nobody asks for it again.
        again = stage == "main" and len(array) == 1
        return self._frames.frame(array) if again else self._frames.pass_on(program, name, array)

    def _weight(self, tensor: str) -> DeviceArray:
        spec = self._held.tensors[tensor]
        return DeviceArray(self.arena.address(tensor), np.dtype(spec.dtype), spec.shape)


def allowed(bundle: Bundle, memory: str | int, private: int = 0) -> int:
    """Return the bytes of weights that a memory setting allows on a device.

    Args:
        bundle: an open bundle.
        memory: memory setting; see :mod:`gemel.bundles.budget`.
        private: bytes of the private copies of weights, which the result includes.

    Raises:
        InputError: the setting allows less than the largest model and the private copies need.
    """
    held = device_weights(bundle.manifest)
    sizes = {name: DeviceArena.footprint(length) for name, length in held.lengths.items()}
    needs = [sum(sizes[segment] for segment in segments) for segments in held.segments_of.values()]
    return budget(memory, sum(sizes.values()), needs, private)


def open_on_card(make: Callable[[Device], _B]) -> _B:
    """Open a backend on the first NVIDIA card, and close the card if opening fails.

    Args:
        make: function that opens the backend, called with the card as a device.

    Raises:
        BackendError: there is no card that can be used, or ``make`` raised the error.
    """
    from ..device.cuda import CudaDevice

    device = CudaDevice()
    try:
        return make(device)
    except BaseException:
        device.close()
        raise

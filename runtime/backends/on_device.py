"""What backends on a device have in common: frames go up, weights are bound by address, answers come down."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...bundles.budget import budget
from ...bundles.manifest import Stage
from ...bundles.reader import Bundle
from ...errors import BackendError, GemelError, first_line
from ..device import Device, DeviceArray, Stream
from ..engines.executables import NoRoomError, allocate
from ..memory.arena import ArenaStats, Loading
from ..memory.device_arena import DeviceArena
from ..ort.session import open_session, quiet
from .arena_backend import SwappingBackend

__all__ = ["Array", "DeviceArray", "Executable", "OnDevice", "OnHost", "allowed"]

Array = NDArray[Any]

_FRAMES = 8
"""That stay on the device: those of as many feeds are there for all their queries."""


class Executable(Protocol):
    """A program on a device. Everything is asked of one stream."""

    def bind(self, tensors: tuple[str, ...], weights: Sequence[DeviceArray]) -> None:
        """Take these as the program's weights, in its order, from now on.

        Args:
            tensors: which they are.
            weights: where they lie. For a model that was bound before it is the same object if they have not moved.

        Raises:
            BackendError: they are not what the program takes.
        """
        ...

    def run(self, inputs: Mapping[str, DeviceArray]) -> dict[str, Array]:
        """Run it, wait for it, and bring its outputs to the machine's memory."""
        ...


class OnHost:
    """A program without weights that the device's library refuses, on this machine's CPU.

    Args:
        path: the stage's ONNX file.
        threads: of a run.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._session = open_session(path, quiet(threads))
        self._outputs = [port.name for port in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


class OnDevice(SwappingBackend[DeviceArena]):
    """See :class:`gemel.runtime.backends.Backend`. No model is constant: that mode is for CPUs.

    Args:
        bundle: an open bundle.
        device: closed with the backend.
        memory: budget for weights.
        threads: of what is left to the CPU; the device runs models.
        loading: how weights come.
        copies: of programs that have a copy of their weights, its bytes. Copies stay from the first use on; the budget
            has room for all of them, and what is left of it is the arena's.

    Raises:
        InputError: the budget is too small.
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
        super().__init__(DeviceArena(device, blob, content.tensors, content.segments, arena, loading))
        self.stream: Stream = device.stream()
        self._uploads = _Uploads(device)
        self._executables: dict[str, Executable | OnHost] = {}
        self._bound: dict[str, Sequence[DeviceArray]] = {}
        """Of each program, the weights that it has."""
        self._weights: dict[tuple[str, str], tuple[list[int], Sequence[DeviceArray]]] = {}
        """Of each model and file, where its segments were, and where that left its weights."""

    @property
    @abstractmethod
    def folder(self) -> Path: ...

    @abstractmethod
    def _open(self, stage: Stage) -> Executable | OnHost:
        """The executable of a stage's program, which is that of every model with this program.

        Raises:
            BackendError: the device or its library refuses it.
        """

    def segments_of(self, model: str) -> tuple[str, ...]:
        return self._bundle.manifest.models[model].segments

    @property
    def private_bytes(self) -> int:
        """Bytes of weights that programs hold by now, beside those in the arena."""
        return sum(size for program, size in self._copies.items() if program in self._executables)

    @property
    def stats(self) -> ArenaStats:
        # Copies are never dropped: they lie beside whatever the arena held.
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
                # Files are read when they are first needed, and a cache may be deleted at any time.
                raise BackendError(f"model {model} cannot be opened: {first_line(error)}") from error
            raise

    def run(self, model: str, stage: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._check_active(model, stage)
        spec = self._bundle.manifest.models[model].stages[stage]
        executable = self._executables[spec.program]
        try:
            if isinstance(executable, OnHost):
                return executable.run(inputs)
            # While it runs, nothing that it reads may be moved.
            with self.arena.running():
                self._bind(executable, model, spec)
                try:
                    return self._answer(executable, spec.program, stage, inputs)
                except NoRoomError:
                    # Frames that stayed for other queries can be uploaded again; these may be on their way up.
                    self.stream.synchronize()
                    self._uploads.forget()
                    return self._answer(executable, spec.program, stage, inputs)
        except GemelError:
            raise
        except Exception as error:
            raise BackendError(f"model {model}, stage {stage}: {first_line(error)}") from error

    def close(self) -> None:
        self._executables.clear()
        self._bound.clear()
        try:
            self._uploads.close()
            super().close()
        finally:
            self.device.close()

    def _bind(self, executable: Executable, model: str, stage: Stage) -> None:
        """Bind a model's weights, unless they are the ones that the program has, where they were."""
        weights = self._where(model, stage)
        if self._bound.get(stage.program) is weights:
            return
        # Half bound is not bound.
        self._bound.pop(stage.program, None)
        executable.bind(stage.weights, weights)
        self._bound[stage.program] = weights

    def _where(self, model: str, stage: Stage) -> Sequence[DeviceArray]:
        """A stage's weights; the same object for as long as they have not moved."""
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
        if stage == "main":
            return self._uploads.frame(array, self.stream)
        return self._uploads.pass_on(program, name, array, self.stream)

    def _weight(self, tensor: str) -> DeviceArray:
        spec = self._bundle.manifest.tensors[tensor]
        return DeviceArray(self.arena.address(tensor), np.dtype(spec.dtype), spec.shape)


def allowed(bundle: Bundle, memory: str | int, private: int = 0) -> int:
    """Bytes of weights that a setting allows on a device.

    Args:
        bundle: an open bundle.
        memory: see :mod:`gemel.bundles.budget`.
        private: bytes of copies.

    Raises:
        InputError: it is too small.
    """
    content = bundle.manifest
    sizes = {name: DeviceArena.footprint(spec.length) for name, spec in content.segments.items()}
    needs = [sum(sizes[segment] for segment in model.segments) for model in content.models.values()]
    return budget(memory, sum(sizes.values()), needs, private)


class _Uploads:
    """Arrays on the device: frames, of which the last ones stay, and room for what stages give each other."""

    def __init__(self, device: Device) -> None:
        self._device = device
        # By identity: the same prepared frame is given to every query that looks at it. The array keeps its id.
        self._frames: OrderedDict[int, tuple[Array, int]] = OrderedDict()
        self._rooms: dict[tuple[str, str], tuple[int, int]] = {}

    def frame(self, array: Array, stream: Stream) -> DeviceArray:
        """A frame, which must not change; given again, it is there already."""
        if id(array) not in self._frames:
            if len(self._frames) == _FRAMES:
                _, (_, oldest) = self._frames.popitem(last=False)
                self._device.free(oldest)
            address = allocate(self._device, array.nbytes)
            try:
                self._device.upload(address, array, stream)
            except BaseException:
                self._device.free(address)
                raise
            self._frames[id(array)] = (array, address)
        self._frames.move_to_end(id(array))
        return DeviceArray(self._frames[id(array)][1], array.dtype, array.shape)

    def pass_on(self, program: str, name: str, array: Array, stream: Stream) -> DeviceArray:
        """What another stage made, until the same input of the same program is given again."""
        size, address = self._rooms.get((program, name), (0, 0))
        if size < array.nbytes:
            if size:
                del self._rooms[program, name]
                self._device.free(address)
            address = allocate(self._device, array.nbytes)
            self._rooms[program, name] = (array.nbytes, address)
        if array.nbytes:
            self._device.upload(address, array, stream)
        return DeviceArray(address, array.dtype, array.shape)

    def close(self) -> None:
        self.forget()
        for _, address in self._rooms.values():
            self._device.free(address)
        self._rooms.clear()

    def forget(self) -> None:
        """Give back the memory of all frames, which nothing may be using."""
        for _, address in self._frames.values():
            self._device.free(address)
        self._frames.clear()

"""TensorRT, and TensorRT for RTX: one engine a program, with weights bound where the device arena has them.

Contexts take turns in one block of activations, as large as the hungriest engine needs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BackendError
from ..arena import WARM, Loading
from ..bundle import Bundle
from ..device import Device, Stream
from ..engines.library import Library
from ..engines.store import Engines, Progress, engines_for
from ..manifest import Stage
from .on_device import Array, DeviceArray, Executable, OnDevice, OnHost

__all__ = ["TensorRt"]

_log = logging.getLogger(__name__)


class _Block:
    """Memory on the device that grows to what is asked for, and is used by one at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._address, self._size = 0, 0

    def take(self, size: int) -> int:
        """An address with ``size`` bytes; what was there before is lost, and may be elsewhere."""
        if size > self._size:
            self.close()
            self._address, self._size = self._device.allocate(size), size
        return self._address

    def close(self) -> None:
        if self._size:
            self._device.free(self._address)
        self._address, self._size = 0, 0


class _Engine:
    """See :class:`.on_device.Executable`."""

    def __init__(
        self, library: Library, engine: Any, stage: Stage, device: Device, stream: Stream, block: _Block
    ) -> None:
        trt = library.module
        self._engine, self._device, self._stream, self._block = engine, device, stream, block
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None:
            raise BackendError(f"{stage.file}: {library.backend} cannot make a context of its engine")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        # Weights are a program's last inputs; its first are the model's own.
        self._weights = inputs[len(inputs) - len(stage.weights) :]
        self._dtypes = {
            name: np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            for name in names
            if modes[name] == trt.TensorIOMode.OUTPUT
        }
        self._outputs = {name: _Block(device) for name in self._dtypes}

    def bind(self, model: str, weights: Sequence[DeviceArray]) -> None:
        for name, weight in zip(self._weights, weights, strict=True):
            self._set(name, weight.address)

    def run(self, inputs: Mapping[str, DeviceArray]) -> dict[str, Array]:
        context = self._context
        for name, array in inputs.items():
            if not context.set_input_shape(name, array.shape):
                raise BackendError(f"input {name}: {array.shape} is not a shape that its engine was built for")
            self._set(name, array.address)
        size = self._engine.device_memory_size_v2
        context.set_device_memory(self._block.take(max(size, 1)), size)
        outputs = {name: np.empty(tuple(context.get_tensor_shape(name)), dtype) for name, dtype in self._dtypes.items()}
        places = {name: self._outputs[name].take(max(output.nbytes, 1)) for name, output in outputs.items()}
        for name, place in places.items():
            self._set(name, place)
        if not context.execute_async_v3(self._stream.handle):
            raise BackendError("the engine could not be run")
        for name, output in outputs.items():
            if output.size:
                self._device.download(output, places[name], self._stream)
        self._stream.synchronize()
        return outputs

    def close(self) -> None:
        for block in self._outputs.values():
            block.close()

    def _set(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise BackendError(f"tensor {name} of the engine cannot be bound")


class TensorRt(OnDevice):
    """See :class:`gemel.runtime.backends.Backend`.

    Engines come from the device cache; where they are missing, or not for this device or version, they are built.

    Args:
        bundle: an open bundle.
        device: closed with the backend.
        library: TensorRT or TensorRT for RTX.
        memory: budget for weights.
        threads: of what is left to the CPU; the device runs models.
        loading: how weights come.
        progress: told of each program whose engine is built.

    Raises:
        BackendError: the library refuses a program.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        library: Library,
        *,
        memory: str | int = "all",
        threads: int = 1,
        loading: Loading = WARM,
        progress: Progress = lambda model, number, count: None,
    ) -> None:
        self.name = library.backend
        self._library = library
        self._block = _Block(device)
        self._opened: list[_Engine] = []
        super().__init__(bundle, device, memory=memory, threads=threads, loading=loading)
        self._logger = library.logger()
        self._runtime = library.module.Runtime(self._logger)
        self._progress = progress
        self._engines: Engines = engines_for(bundle, library, device, progress)

    @property
    def folder(self) -> Path:
        return self._engines.folder

    def close(self) -> None:
        for engine in self._opened:
            engine.close()
        self._opened.clear()
        self._block.close()
        super().close()

    def _open(self, stage: Stage) -> Executable | OnHost:
        if stage.program in self._engines.refused:
            _log.info("%s runs on the CPU: %s", stage.file, self._engines.refused[stage.program])
            return OnHost(self._bundle.file(stage.file), self.threads)
        engine = self._deserialised(stage)
        if engine is None:
            _log.warning("%s: its engine is not for this device or version; all are built anew", stage.file)
            self._engines = engines_for(self._bundle, self._library, self.device, self._progress, fresh=True)
            engine = self._deserialised(stage)
        if engine is None:
            raise BackendError(f"{stage.file}: {self._library.refusal(self._logger.errors)}")
        made = _Engine(self._library, engine, stage, self.device, self.stream, self._block)
        self._opened.append(made)
        return made

    def _deserialised(self, stage: Stage) -> Any:
        """The engine of a stage's program; None where the library cannot use it."""
        return self._runtime.deserialize_cuda_engine(self._engines.path(stage.program).read_bytes())

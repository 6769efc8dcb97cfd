"""Engines that run on a device, in two modes: *bound* to weights in the arena, or *refitted* with a private copy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...bundles.manifest import Stage
from ...bundles.onnx_wire import tensor_array
from ...bundles.program import read_model
from ...errors import BackendError
from ..device import Device, DeviceArray, Stream
from .library import Library

__all__ = ["BoundEngine", "Engine", "EngineOpener", "NoRoomError", "RefitEngine", "allocate"]

_Array = NDArray[Any]
E = TypeVar("E", bound="Engine")


class NoRoomError(BackendError):
    """Error of a device that has less free memory than was requested."""


def allocate(device: Device, size: int) -> int:
    """Allocate device memory and return its address; raise a :class:`NoRoomError` if too little is free.

    Raises:
        NoRoomError: not enough memory is free; the message says how many bytes are.
    """
    try:
        return device.allocate(size)
    except BackendError as error:
        raise NoRoomError(str(error)) from error


class _Block:
    """Device memory that grows to the largest size requested so far, and has one user at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._address, self._size = 0, 0

    def take(self, size: int) -> int:
        """Return the address of a device memory block of ``size`` bytes; old contents and addresses may be invalid.

        Raises:
            NoRoomError: not enough memory is free.
        """
        if size > self._size:
            self.close()
            self._address, self._size = allocate(self._device, size), size
        return self._address

    def close(self) -> None:
        """Free the block of device memory."""
        if self._size:
            self._device.free(self._address)
        self._address, self._size = 0, 0


class EngineOpener:
    """Opener of engines of TensorRT, or of TensorRT for RTX, on one device.

    The engines run one after the other in one stream. They share one block of memory for activations, which is as large
    as the most demanding engine needs.

    Args:
        library: TensorRT or TensorRT for RTX, which built the engines.
        device: device that runs the engines.
        stream: stream in which the engines run.
    """

    def __init__(self, library: Library, device: Device, stream: Stream) -> None:
        self.library, self.device, self.stream = library, device, stream
        self.block = _Block(device)
        self._runtime = library.module.Runtime(library.logger())
        self._opened: list[Engine] = []

    def bound(self, data: bytes, stage: Stage) -> BoundEngine | None:
        """Open an engine that takes its program's weights as inputs.

        Args:
            data: serialised engine.
            stage: stage of any model with this program.

        Returns:
            The engine; None if the library cannot use it, for example because another version built it.

        Raises:
            BackendError: the library cannot make an execution context of the engine.
        """
        engine = self._loaded(data)
        return None if engine is None else self._with(BoundEngine(self, engine, stage))

    def refitted(self, data: bytes, stage: Stage, proto: bytes) -> RefitEngine | None:
        """Open an engine that holds a private copy of a model's weights.

        The copy has no values until the first refit, which copies the weights of a model into the engine.

        Args:
            data: serialised engine.
            stage: stage of any model with this program.
            proto: serialised program.

        Returns:
            The engine; None if the library cannot use it.

        Raises:
            BackendError: the names of the engine's weights are not those of the program's weights.
        """
        engine = self._loaded(data)
        return None if engine is None else self._with(RefitEngine(self, engine, stage, proto))

    def close(self) -> None:
        """Free the device memory of all opened engines; none of them may be used afterwards."""
        for engine in self._opened:
            engine.close()
        self._opened.clear()
        self.block.close()

    def _loaded(self, data: bytes) -> Any:
        """Deserialise and return an engine; return None if TensorRT, or TensorRT for RTX, cannot use the engine."""
        # Errors from now on are about this engine.
        self.library.logger().errors.clear()
        return self._runtime.deserialize_cuda_engine(data)

    def _with(self, engine: E) -> E:
        self._opened.append(engine)
        return engine


class Engine(ABC):
    """Base class of bound and refitted engines, see :class:`gemel.runtime.backends.on_device.Executable`."""

    def __init__(self, opener: EngineOpener, engine: Any, stage: Stage) -> None:
        trt = opener.library.module
        self._opener, self._engine, self._file = opener, engine, stage.file
        self._context: Any = None
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._dtypes = {
            name: np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            for name in names
            if modes[name] == trt.TensorIOMode.OUTPUT
        }
        self._outputs = {name: _Block(opener.device) for name in self._dtypes}

    @abstractmethod
    def bind(self, tensors: tuple[str, ...], weights: Sequence[DeviceArray]) -> None: ...

    def run(self, inputs: Mapping[str, DeviceArray]) -> dict[str, _Array]:
        context, device, stream = self._context, self._opener.device, self._opener.stream
        for name, array in inputs.items():
            if not context.set_input_shape(name, array.shape):
                raise BackendError(f"input {name}: {array.shape} is not a shape that its engine was built for")
            self._set(name, array.address)
        size = self._engine.device_memory_size_v2
        context.set_device_memory(self._opener.block.take(max(size, 1)), size)
        outputs = {name: np.empty(tuple(context.get_tensor_shape(name)), dtype) for name, dtype in self._dtypes.items()}
        places = {name: self._outputs[name].take(max(output.nbytes, 1)) for name, output in outputs.items()}
        for name, place in places.items():
            self._set(name, place)
        if not context.execute_async_v3(stream.handle):
            raise BackendError("the engine could not be run")
        for name, output in outputs.items():
            if output.size:
                device.download(output, places[name], stream)
        stream.synchronize()
        return outputs

    def close(self) -> None:
        """Free the device memory of the engine's outputs."""
        for block in self._outputs.values():
            block.close()

    def _make_context(self) -> None:
        strategy = self._opener.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = self._engine.create_execution_context(strategy)
        if self._context is None:
            raise BackendError(f"{self._file}: {self._opener.library.backend} cannot make a context of its engine")

    def _set(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise BackendError(f"tensor {name} of the engine cannot be bound")


class BoundEngine(Engine):
    """Engine that takes weights as inputs and reads them at their addresses in the arena, without a copy.

    Raises:
        BackendError: the library cannot make an execution context of the engine.
    """

    def __init__(self, opener: EngineOpener, engine: Any, stage: Stage) -> None:
        super().__init__(opener, engine, stage)
        # Weights are a program's last inputs; its first are the model's own.
        self._weights = self._inputs[len(self._inputs) - len(stage.weights) :]
        self._make_context()

    def bind(self, tensors: tuple[str, ...], weights: Sequence[DeviceArray]) -> None:
        for name, weight in zip(self._weights, weights, strict=True):
            self._set(name, weight.address)


class RefitEngine(Engine):
    """Engine with a private copy of its weights; a swap copies another model's weights into the engine, on the device.

    Raises:
        BackendError: the names of the engine's weights are not those of the program's weights.
    """

    def __init__(self, opener: EngineOpener, engine: Any, stage: Stage, proto: bytes) -> None:
        super().__init__(opener, engine, stage)
        library, graph = opener.library, read_model(proto).graph
        try:
            self._refitter = library.module.Refitter(engine, library.logger())
        except (RuntimeError, TypeError) as error:
            raise BackendError(f"{stage.file}: cannot be refitted: {error}") from error
        self._weights = [port.name for port in graph.input][len(graph.input) - len(stage.weights) :]
        self._tensors: tuple[str, ...] | None = None
        inline = {tensor.name: tensor for tensor in graph.initializer}
        asked = set(self._refitter.get_all_weights())
        for name in self._weights:
            if name not in asked:
                raise BackendError(f"{stage.file}: cannot be refitted: its engine has no weights of the name {name}")
        for name in sorted(asked.difference(self._weights)):
            if name not in inline:
                raise BackendError(
                    f"{stage.file}: cannot be refitted: its engine asks for {name}, a weight that the program lacks"
                )
        # A stripped engine lacks the program's own constants, too. Kept, because the library reads them at each refit.
        self._constants = {name: tensor_array(inline[name]).ravel().copy() for name in asked.difference(self._weights)}
        for name, values in self._constants.items():
            self._check(name, self._refitter.set_named_weights(name, library.module.Weights(values)))

    def bind(self, tensors: tuple[str, ...], weights: Sequence[DeviceArray]) -> None:
        # The copy has the right values even if the arena has moved the weights since.
        if self._tensors != tensors:
            # A refit that fails half way leaves a mixture of old and new weights in the engine.
            self._tensors = None
            self.refit(weights)
            self._tensors = tensors

    def refit(self, weights: Sequence[DeviceArray]) -> None:
        """Copy weights into the engine, and wait for the copy: afterwards the arena may move the weights.

        Raises:
            BackendError: the library refuses the weights.
        """
        trt, stream = self._opener.library.module, self._opener.stream
        for name, weight in zip(self._weights, weights, strict=True):
            dtype = getattr(trt, weight.dtype.name, None)
            self._check(
                name,
                dtype is not None
                and self._refitter.set_named_weights(
                    name, trt.Weights(dtype, weight.address, prod(weight.shape)), trt.TensorLocation.DEVICE
                ),
            )
        logger = self._opener.library.logger()
        logger.errors.clear()
        if not self._refitter.refit_cuda_engine_async(stream.handle):
            raise BackendError(f"{self._file}: {self._opener.library.refusal(logger.errors)}")
        stream.synchronize()
        if self._context is None:
            # TensorRT makes no context of an engine whose weights have no values yet.
            self._make_context()

    def _check(self, name: str, taken: bool) -> None:
        """Raise a BackendError if the library did not accept the weights called ``name``."""
        if not taken:
            raise BackendError(f"{self._file}: cannot be refitted: its engine does not take weights {name}")

"""Engines on a device, in two modes: *bound* to weights wherever they lie, or *refitted* with a copy of them."""

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
    """The device has less memory left than is asked for."""


def allocate(device: Device, size: int) -> int:
    """See :meth:`gemel.runtime.device.Device.allocate`; of this failure callers can tell that it is one of memory.

    Raises:
        NoRoomError: there is not enough; the message says how much there is.
    """
    try:
        return device.allocate(size)
    except BackendError as error:
        raise NoRoomError(str(error)) from error


class _Block:
    """Memory on the device that grows to what is asked for, and is used by one at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._address, self._size = 0, 0

    def take(self, size: int) -> int:
        """An address with ``size`` bytes; what was there before is lost, and may be elsewhere.

        Raises:
            NoRoomError: there is not enough.
        """
        if size > self._size:
            self.close()
            self._address, self._size = allocate(self._device, size), size
        return self._address

    def close(self) -> None:
        if self._size:
            self._device.free(self._address)
        self._address, self._size = 0, 0


class EngineOpener:
    """Opens a library's engines on a device.

    They take turns: in one stream, and in one block of activations, as large as the hungriest of them needs.

    Args:
        library: that built them.
        device: where they run.
        stream: that they run in.
    """

    def __init__(self, library: Library, device: Device, stream: Stream) -> None:
        self.library, self.device, self.stream = library, device, stream
        self.block = _Block(device)
        self._runtime = library.module.Runtime(library.logger())
        self._opened: list[Engine] = []

    def bound(self, data: bytes, stage: Stage) -> BoundEngine | None:
        """Open an engine whose weights are inputs; None where the library cannot use it, being another version's, say.

        Args:
            data: what was built.
            stage: of a model with this program.

        Raises:
            BackendError: there is no room for it.
        """
        engine = self._loaded(data)
        return None if engine is None else self._with(BoundEngine(self, engine, stage))

    def refitted(self, data: bytes, stage: Stage, proto: bytes) -> RefitEngine | None:
        """Open one that has room for weights and no values yet.

        Args:
            data: what was built.
            stage: of a model with this program.
            proto: the program.

        Raises:
            BackendError: the engine's weights are not the program's.
        """
        engine = self._loaded(data)
        return None if engine is None else self._with(RefitEngine(self, engine, stage, proto))

    def close(self) -> None:
        """Give back what engines have taken; none of them may be used any more."""
        for engine in self._opened:
            engine.close()
        self._opened.clear()
        self.block.close()

    def _loaded(self, data: bytes) -> Any:
        # What the library says from now on is about this one.
        self.library.logger().errors.clear()
        return self._runtime.deserialize_cuda_engine(data)

    def _with(self, engine: E) -> E:
        self._opened.append(engine)
        return engine


class Engine(ABC):
    """What both modes have in common; see :class:`gemel.runtime.backends.on_device.Executable`."""

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
    """Weights are inputs: it reads them where they are, and nothing is copied."""

    def __init__(self, opener: EngineOpener, engine: Any, stage: Stage) -> None:
        super().__init__(opener, engine, stage)
        # Weights are a program's last inputs; its first are the model's own.
        self._weights = self._inputs[len(self._inputs) - len(stage.weights) :]
        self._make_context()

    def bind(self, tensors: tuple[str, ...], weights: Sequence[DeviceArray]) -> None:
        for name, weight in zip(self._weights, weights, strict=True):
            self._set(name, weight.address)


class RefitEngine(Engine):
    """Weights are constants, in a copy of its own, into which those of another model are copied on the device.

    Raises:
        BackendError: the engine's weights are not those of the program, name by name.
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
                raise BackendError(f"{stage.file}: cannot be refitted: its engine asks for {name}, which it has not")
        # A stripped engine lacks the program's own constants, too. The library reads them whenever it refits.
        self._constants = {name: tensor_array(inline[name]).ravel().copy() for name in asked.difference(self._weights)}
        for name, values in self._constants.items():
            self._check(name, self._refitter.set_named_weights(name, library.module.Weights(values)))

    def bind(self, tensors: tuple[str, ...], weights: Sequence[DeviceArray]) -> None:
        # Where they lie does not matter to the copy.
        if self._tensors != tensors:
            # Half refitted is not refitted.
            self._tensors = None
            self.refit(weights)
            self._tensors = tensors

    def refit(self, weights: Sequence[DeviceArray]) -> None:
        """Copy weights into the engine; done on return, so that they may be moved.

        Raises:
            BackendError: the library refuses them.
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
            # An engine without values cannot have one.
            self._make_context()

    def _check(self, name: str, taken: bool) -> None:
        if not taken:
            raise BackendError(f"{self._file}: cannot be refitted: its engine does not take weights {name}")

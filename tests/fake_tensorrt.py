"""As much of TensorRT's Python API as gemel uses, on a device that is this machine's memory.

An engine is the program that it was built from; ONNX Runtime runs it on what lies at the addresses that were bound, in
the stream that it is given. So the code around TensorRT is tested without a card: what is bound where, when it is
copied, and what becomes of engines that cannot be used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from gemel.runtime.device.host import HostStream
from gemel.runtime.program import read

__all__ = ["FakeTensorRt"]

_BLOCK = 4096
"""Bytes of activations that every engine asks for, and overwrites."""


class _Logger:
    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class FakeTensorRt:
    """Stands in for the module.

    Args:
        streams: streams of the device by handle.
        version: engines of other versions are refused.
        refuses: operators that it does not know.
    """

    ILogger = _Logger

    class NetworkDefinitionCreationFlag(IntEnum):
        STRONGLY_TYPED = 1

    class ExecutionContextAllocationStrategy(Enum):
        USER_MANAGED = 2

    class TensorIOMode(Enum):
        INPUT = 1
        OUTPUT = 2

    def __init__(
        self, streams: Mapping[int, HostStream], version: str = "10.3.0", refuses: Collection[str] = ()
    ) -> None:
        self._refuses = refuses
        self.__version__ = version
        self.streams = streams
        self.built = 0
        self.allocated: set[int] = set()

    @staticmethod
    def nptype(dtype: Any) -> Any:
        return dtype

    def Builder(self, logger: _Logger) -> Any:  # noqa: N802
        def serialised(network: Any, config: Any) -> bytes:
            self.built += 1
            data: bytes = f"{self.__version__}\n".encode() + network.proto
            return data

        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(num_inputs=0, num_layers=1),
            create_builder_config=lambda: SimpleNamespace(add_optimization_profile=lambda profile: 0),
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda name, least, best, most: None),
            build_serialized_network=serialised,
        )

    def OnnxParser(self, network: Any, logger: _Logger) -> Any:  # noqa: N802
        def parse(proto: bytes) -> bool:
            if any(node.op_type in self._refuses for node in read(proto).graph.node):
                return False
            ports = [
                SimpleNamespace(
                    name=port.name, shape=[each.dim_value or -1 for each in port.type.tensor_type.shape.dim]
                )
                for port in read(proto).graph.input
            ]
            network.proto, network.num_inputs, network.get_input = proto, len(ports), ports.__getitem__
            return True

        return SimpleNamespace(parse=parse, num_errors=0, get_error=None)

    def Runtime(self, logger: _Logger) -> Any:  # noqa: N802
        def deserialised(data: bytes) -> _Engine | None:
            version, _, proto = data.partition(b"\n")
            if version.decode() != self.__version__:
                logger.log(_Logger.Severity.ERROR, f"version tag does not match: {version.decode()}")
                return None
            return _Engine(self, proto)

        return SimpleNamespace(deserialize_cuda_engine=deserialised)


class _Engine:
    device_memory_size_v2 = _BLOCK

    def __init__(self, library: FakeTensorRt, proto: bytes) -> None:
        self.library = library
        self.session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
        self.inputs = {port.name: port for port in self.session.get_inputs()}
        self.outputs = {port.name: port for port in self.session.get_outputs()}
        self._names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return str(self._names[index])

    def get_tensor_mode(self, name: str) -> Any:
        return FakeTensorRt.TensorIOMode.INPUT if name in self.inputs else FakeTensorRt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        return types[(self.inputs | self.outputs)[name].type]

    def create_execution_context(self, strategy: Any) -> _Context:
        assert strategy is FakeTensorRt.ExecutionContextAllocationStrategy.USER_MANAGED
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._block = (0, 0)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        known = self._engine.inputs[name].shape
        self._shapes[name] = tuple(shape)
        return len(known) == len(shape) and all(isinstance(a, str) or a == b for a, b in zip(known, shape, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        (rows,) = {shape[0] for shape in self._shapes.values()}
        return tuple(rows if isinstance(each, str) else each for each in self._engine.outputs[name].shape)

    def set_device_memory(self, address: int, size: int) -> None:
        self._block = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address % 256 == 0 or name in self._engine.inputs

    def execute_async_v3(self, handle: int) -> bool:
        # What is bound now is what counts, whatever is bound before the stream gets there.
        addresses, shapes, block = dict(self._addresses), dict(self._shapes), self._block

        def run() -> None:
            _at(block[0], (block[1],), np.uint8)[:] = 0xEE
            given = {
                name: _at(addresses[name], shapes.get(name, port.shape), self._engine.get_tensor_dtype(name)).copy()
                for name, port in self._engine.inputs.items()
            }
            names = list(self._engine.outputs)
            for name, value in zip(names, self._engine.session.run(names, given), strict=True):
                _at(addresses[name], value.shape, value.dtype)[...] = value

        self._engine.library.streams[handle].submit(run)
        return True


def _at(address: int, shape: Any, dtype: Any) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)

"""Test double of TensorRT: the part of its Python API that gemel uses, on the host double of a device.

An engine is the program that it was built from. ONNX Runtime runs the program on the bytes at the bound addresses, or
on those that a refit copied into the engine, in the stream that it is given. So the code around TensorRT is tested
without a card: which addresses are bound, when weights are copied, and what happens to engines that cannot be used.

Runs and refits take the times that the test sets, see :meth:`FakeTensorRt.now`.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
from collections.abc import Collection, Mapping
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from host_device import HostStream

from gemel.bundles.onnx_wire import tensor_array
from gemel.bundles.program import read_model

__all__ = ["FakeTensorRt"]

_BLOCK = 4096
"""Bytes of activations that every engine asks for, and overwrites at each run."""


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
    """Double of the Python module ``tensorrt``.

    Args:
        streams: streams of the device by handle.
        version: version of the library. Engines of other versions are refused.
        refuses: operators that the parser does not know.
        seconds: times of a ``bound`` run, a ``refit`` run and a ``swap``; when left out, no engine can be refitted.
        renames: weights that have another name in engines that can be refitted.
        keeps: weights that a refit leaves as they were when the engine was built.
        wrong: number that refitted engines add to their outputs.
        timings: whether the library has timing caches.
    """

    ILogger = _Logger
    float32 = np.float32

    class NetworkDefinitionCreationFlag(IntEnum):
        STRONGLY_TYPED = 1

    class BuilderFlag(Enum):
        STRIP_PLAN = 1
        REFIT = 2
        REFIT_IDENTICAL = 3

    class ExecutionContextAllocationStrategy(Enum):
        USER_MANAGED = 2

    class TensorIOMode(Enum):
        INPUT = 1
        OUTPUT = 2

    class TensorLocation(Enum):
        HOST = 0
        DEVICE = 1

    def __init__(
        self,
        streams: Mapping[int, HostStream],
        version: str = "10.3.0",
        refuses: Collection[str] = (),
        *,
        seconds: Mapping[str, float] | None = None,
        renames: Mapping[str, str] | None = None,
        keeps: Collection[str] = (),
        wrong: float = 0.0,
        timings: bool = False,
    ) -> None:
        self._refuses, self._renames, self._keeps, self._timings = refuses, renames or {}, keeps, timings
        self.__version__ = version
        self.streams = streams
        self.seconds, self.wrong = seconds, wrong
        self.built = 0
        self.flags: list[set[str]] = []
        """Builder flags of each engine that was built."""
        self.timed = 0
        """Programs whose kernels were timed, because the timing cache did not have them."""
        self.refits = 0
        self._now = 0.0

    def now(self) -> float:
        """Return the seconds that runs and refits took so far."""
        return self._now

    def pass_time(self, what: str) -> None:
        """Add the time of a ``bound`` run, a ``refit`` run or a ``swap``."""
        self._now += (self.seconds or {}).get(what, 0.0)

    @staticmethod
    def nptype(dtype: Any) -> Any:
        return dtype

    @staticmethod
    def Weights(first: Any, address: int | None = None, count: int | None = None) -> Any:  # noqa: N802
        if address is None:
            return SimpleNamespace(dtype=first.dtype, address=first.ctypes.data, count=first.size)
        return SimpleNamespace(dtype=np.dtype(first), address=address, count=count)

    def Builder(self, logger: _Logger) -> Any:  # noqa: N802
        def serialised(network: Any, config: Any) -> bytes | None:
            flags = config.flags
            if flags and self.seconds is None:
                logger.log(_Logger.Severity.ERROR, "engines that can be refitted need a device")
                return None
            self.built += 1
            self.flags.append(flags)
            if (cache := config.cache) is not None:
                digest = hashlib.sha256(network.proto).hexdigest()
                self.timed += digest not in cache.known
                cache.known.add(digest)
            plan = {
                "version": self.__version__,
                "identical": "REFIT_IDENTICAL" in flags,
                "refit": sorted(flags) != [],
                "names": {name: self._renames.get(name, name) for name in network.weights},
                "digests": {name: hashlib.sha256(data).hexdigest() for name, data in network.weights.items()},
                "kept": {name: base64.b64encode(network.weights[name]).decode() for name in self._keeps if flags},
            }
            assert not network.weights or "STRIP_PLAN" in flags, "weights would be in the engine"
            return json.dumps({**plan, "proto": base64.b64encode(network.proto).decode()}).encode()

        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(num_inputs=0, num_layers=1),
            create_builder_config=lambda: (_TimedConfig if self._timings else _Config)(),
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda name, least, best, most: None),
            build_serialized_network=serialised,
        )

    def OnnxParser(self, network: Any, logger: _Logger) -> Any:  # noqa: N802
        def parse(proto: bytes, path: str | None = None) -> bool:
            model = read_model(proto)
            if any(node.op_type in self._refuses for node in model.graph.node):
                return False
            ports = [
                SimpleNamespace(
                    name=port.name, shape=[each.dim_value or -1 for each in port.type.tensor_type.shape.dim]
                )
                for port in model.graph.input
            ]
            network.weights = _taken_out(model, path)
            network.proto = model.SerializeToString(deterministic=True)
            network.num_inputs, network.get_input = len(ports), ports.__getitem__
            return True

        return SimpleNamespace(parse=parse, num_errors=0, get_error=None)

    def Runtime(self, logger: _Logger) -> Any:  # noqa: N802
        def deserialised(data: bytes) -> _Engine | None:
            plan = json.loads(data)
            if plan["version"] != self.__version__:
                logger.log(_Logger.Severity.ERROR, f"version tag does not match: {plan['version']}")
                return None
            return _Engine(self, plan)

        return SimpleNamespace(deserialize_cuda_engine=deserialised)

    def Refitter(self, engine: _Engine, logger: _Logger) -> Any:  # noqa: N802
        return _Refitter(engine, logger)


def _taken_out(model: Any, path: str | None) -> dict[str, bytes]:
    """Turn all float constants of a model into inputs, as in a stripped engine, and return their names and values.

    Args:
        model: model that is changed in place.
        path: file in the folder of the weights; when left out, nothing is stripped.
    """
    values: dict[str, bytes] = {}
    if path is None:
        return values
    for tensor in [tensor for tensor in model.graph.initializer if tensor.data_type == 1]:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            with (Path(path).parent / place["location"]).open("rb") as file:
                file.seek(int(place["offset"]))
                values[tensor.name] = file.read(int(place["length"]))
        else:
            values[tensor.name] = tensor_array(tensor).tobytes()
        port = model.graph.input.add(name=tensor.name)
        port.type.tensor_type.elem_type = tensor.data_type
        for size in tensor.dims:
            port.type.tensor_type.shape.dim.add(dim_value=size)
        model.graph.initializer.remove(tensor)
    return values


class _Config:
    """Builder configuration of a library without timing caches."""

    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.cache: Any = None

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)


class _TimedConfig(_Config):
    """Builder configuration of a library with timing caches. A cache is the set of digests of the programs in it."""

    def create_timing_cache(self, data: bytes) -> Any:
        known = set(data.decode().split())
        return SimpleNamespace(known=known, serialize=lambda: " ".join(sorted(known)).encode())

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class _Engine:
    device_memory_size_v2 = _BLOCK

    def __init__(self, library: FakeTensorRt, plan: Mapping[str, Any]) -> None:
        self.library, self.plan = library, plan
        self.session = ort.InferenceSession(base64.b64decode(plan["proto"]), providers=["CPUExecutionProvider"])
        ports = {port.name: port for port in self.session.get_inputs()}
        self.weights = {name: ports.pop(name) for name in plan["names"]}
        """Name in the program -> port of the weights; empty for an engine that has weights as inputs."""
        self.values: dict[str, Any] = {}
        """Name in the program -> the engine's private copy of the weights."""
        self.refitted = not plan["refit"]
        self.inputs = ports
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

    def create_execution_context(self, strategy: Any) -> _Context | None:
        assert strategy is FakeTensorRt.ExecutionContextAllocationStrategy.USER_MANAGED
        return _Context(self) if self.refitted else None


class _Refitter:
    def __init__(self, engine: _Engine, logger: _Logger) -> None:
        self._engine, self._logger = engine, logger
        self._names = {name: real for real, name in engine.plan["names"].items()}
        self._given: dict[str, Any] = {}

    def get_all_weights(self) -> list[str]:
        return list(self._names)

    def set_named_weights(self, name: str, weights: Any, location: Any = None) -> bool:
        port = self._engine.weights.get(self._names.get(name, ""))
        if port is None or weights.dtype != np.float32 or weights.count != np.prod(port.shape):
            return False
        self._given[name] = weights
        return True

    def refit_cuda_engine_async(self, handle: int) -> bool:
        engine, given = self._engine, dict(self._given)
        if given.keys() != self._names.keys():
            self._logger.log(_Logger.Severity.ERROR, "weights are missing")
            return False

        def refit() -> None:
            for name, weights in given.items():
                real = self._names[name]
                shape = engine.weights[real].shape
                values = _at(weights.address, shape, weights.dtype).copy()
                if real in engine.plan["kept"]:
                    values = np.frombuffer(base64.b64decode(engine.plan["kept"][real]), weights.dtype).reshape(shape)
                if engine.plan["identical"]:
                    digest = hashlib.sha256(values.tobytes()).hexdigest()
                    assert digest == engine.plan["digests"][real], f"{real} is not what the engine was built with"
                engine.values[real] = values
            engine.library.refits += 1
            engine.library.pass_time("swap")

        engine.refitted = True
        engine.library.streams[handle].submit(refit)
        return True


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
        # The run uses the addresses bound now, whatever is bound before the stream gets to it.
        addresses, shapes, block = dict(self._addresses), dict(self._shapes), self._block
        engine = self._engine

        def run() -> None:
            _at(block[0], (block[1],), np.uint8)[:] = 0xEE
            given = {
                name: _at(addresses[name], shapes.get(name, port.shape), engine.get_tensor_dtype(name)).copy()
                for name, port in engine.inputs.items()
            }
            names = list(engine.outputs)
            for name, value in zip(names, engine.session.run(names, {**given, **engine.values}), strict=True):
                wrong = engine.library.wrong if engine.values else 0.0
                _at(addresses[name], value.shape, value.dtype)[...] = value + wrong
            engine.library.pass_time("refit" if engine.plan["refit"] else "bound")

        engine.library.streams[handle].submit(run)
        return True


def _at(address: int, shape: Any, dtype: Any) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)

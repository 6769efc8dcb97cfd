"""ONNX Runtime on a CPU: one session a program, weights bound where they are mapped."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...errors import BackendError
from ..arena import ArenaStats, HostArena
from ..bake import Baked, bake
from ..bundle import Bundle
from ..memory import budget

__all__ = ["OrtCpu"]


@cache
def _share_activations() -> None:
    """One activation arena for all sessions of the process: they take turns, and need the largest, not the sum.

    Three programs of the street example: 121 MB instead of 138 MB, at equal times. Once a process, or it is an error.
    """
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, None)


class _Bound:
    """A program with the addresses of one model."""

    def __init__(self, session: ort.InferenceSession, weights: Sequence[ort.OrtValue]) -> None:
        self.session = session
        self.binding = session.io_binding()
        self.outputs = [port.name for port in session.get_outputs()]
        for index, value in enumerate(weights):
            self.binding.bind_ortvalue_input(f"w{index}", value)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, array in inputs.items():
            self.binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self.outputs:
            # Bound anew each time: shapes follow the batch.
            self.binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(self.binding)
        return dict(zip(self.outputs, self.binding.copy_outputs_to_cpu(), strict=True))


class OrtCpu:
    """The default backend; see :class:`gemel.runtime.backends.Backend`."""

    name = "ort-cpu"

    def __init__(
        self,
        bundle: Bundle,
        *,
        memory: str | int = "all",
        threads: int | None = None,
        progress: Callable[[str], None] = lambda model: None,
    ) -> None:
        _share_activations()
        self._bundle = bundle
        self._threads = threads or max(1, (os.cpu_count() or 2) - 1)
        self.baked: Baked = bake(bundle, progress)
        sizes = {name: spec.length for name, spec in self.baked.segments.items()}
        models = [sum(sizes[segment] for segment in segments) for segments in self.baked.segments_of.values()]
        allowed = budget(memory, sum(sizes.values()), models)
        self.arena = HostArena(self.baked.blob, self.baked.tensors, self.baked.segments, allowed)
        self._values: dict[str, ort.OrtValue] = {}
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._bound: dict[tuple[str, str], _Bound] = {}
        self._active: set[str] = set()

    def activate(self, model: str) -> None:
        if model not in self._active:
            self.arena.acquire(self._segments(model))
            self._active.add(model)
        for stage in self._bundle.manifest.models[model].stages:
            if (model, stage) not in self._bound:
                self._bound[model, stage] = self._bind(model, stage)

    def release(self, model: str) -> None:
        if model in self._active:
            self._active.remove(model)
            self.arena.release(self._segments(model))

    def unbind(self, model: str) -> None:
        """Forget a model's bindings, so that the next :meth:`activate` is a whole swap-in (for measuring it)."""
        self.release(model)
        for stage in self._bundle.manifest.models[model].stages:
            self._bound.pop((model, stage), None)

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        bound = self._bound.get((model, stage))
        if bound is None or model not in self._active:
            raise BackendError(f"model {model!r}, stage {stage!r}: not active; call activate() first")
        try:
            return bound.run(inputs)
        except Exception as error:
            raise BackendError(f"model {model}, stage {stage}: {error}") from error

    @property
    def budget(self) -> int:
        return self.arena.budget

    @property
    def stats(self) -> ArenaStats:
        return self.arena.stats

    def close(self) -> None:
        self._bound.clear()
        self._values.clear()
        self._sessions.clear()

    def __enter__(self) -> OrtCpu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _segments(self, model: str) -> tuple[str, ...]:
        return self.baked.segments_of[model]

    def _bind(self, model: str, stage: str) -> _Bound:
        baked = self.baked.models[model][stage]
        if self._bundle.manifest.models[model].mode == "constant":
            return _Bound(self._session(str(self.baked.constant(model, stage)), prepack=True), [])
        session = self._session(str(self.baked.program(baked.program)), prepack=False)
        return _Bound(session, [self._value(tensor) for tensor in baked.weights])

    def _value(self, tensor: str) -> ort.OrtValue:
        """A tensor as ONNX Runtime wants it: an address in the mapped blob, made once whoever uses it."""
        if tensor not in self._values:
            self._values[tensor] = ort.OrtValue.ortvalue_from_numpy(self.arena.tensor(tensor))
        return self._values[tensor]

    def _session(self, path: str, *, prepack: bool) -> ort.InferenceSession:
        """The session of a graph; every model of a program uses the same one."""
        if path not in self._sessions:
            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = self._threads
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.use_env_allocators", "1")
            # Weights arrive as inputs: there is nothing to pack, and packing would copy.
            options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
            try:
                self._sessions[path] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise BackendError(f"{path}: ONNX Runtime {ort.__version__} refuses it: {error}") from error
        return self._sessions[path]

"""ONNX Runtime on a CPU: one session a program, weights bound where they are mapped."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...errors import BackendError, first_line
from ..arena import WARM, ArenaStats, Loading
from ..bake import Baked, bake
from ..blob import footprint
from ..bundle import Bundle
from ..host_arena import HostArena
from ..memory import budget
from ..session import open_session, quiet
from .swapping import SwappingBackend

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
        # Weights are a program's last inputs; its first are the model's own.
        ports = session.get_inputs()
        for port, value in zip(ports[len(ports) - len(weights) :], weights, strict=True):
            self.binding.bind_ortvalue_input(port.name, value)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, array in inputs.items():
            self.binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self.outputs:
            # Bound anew each time: shapes follow the batch.
            self.binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(self.binding)
        return dict(zip(self.outputs, self.binding.copy_outputs_to_cpu(), strict=True))


class OrtCpu(SwappingBackend[HostArena]):
    """The default backend; see :class:`gemel.runtime.backends.Backend`.

    Models in mode ``constant`` take no part in swapping: their session holds a private copy of their weights from the
    first use on. The budget has room for all these copies; what is left of it is the arena's.
    """

    name = "ort-cpu"

    def __init__(
        self,
        bundle: Bundle,
        *,
        memory: str | int = "all",
        threads: int | None = None,
        loading: Loading = WARM,
        progress: Callable[[str], None] = lambda model: None,
    ) -> None:
        _share_activations()
        self._bundle, self.loading = bundle, loading
        self.threads = threads or max(1, (os.cpu_count() or 2) - 1)
        self.baked: Baked = bake(bundle, progress)
        self._copies = _private_copies(bundle, self.baked)
        arena = {
            name: spec
            for name, spec in self.baked.segments.items()
            if any(bundle.manifest.models[model].mode == "bound" for model in spec.models)
        }
        sizes = {name: footprint(spec.length) for name, spec in arena.items()}
        needs = [sum(sizes[segment] for segment in self.segments_of(model)) for model in bundle.manifest.models]
        private = sum(self._copies.values())
        allowed = budget(memory, sum(sizes.values()), needs, private)
        self.budget = allowed
        super().__init__(HostArena(self.baked.blob, self.baked.tensors, arena, allowed - private, loading))
        self._values: dict[str, ort.OrtValue] = {}
        self._sessions: dict[Path, ort.InferenceSession] = {}
        self._bound: dict[tuple[str, str], _Bound] = {}

    def segments_of(self, model: str) -> tuple[str, ...]:
        return () if self._is_constant(model) else self.baked.segments_of[model]

    @property
    def folder(self) -> Path:
        return self.baked.folder

    def activate(self, model: str) -> None:
        super().activate(model)
        try:
            for stage in self._bundle.manifest.models[model].stages:
                if (model, stage) not in self._bound:
                    self._bound[model, stage] = self._bind(model, stage)
        except BaseException:
            self.release(model)
            raise

    def unbind(self, model: str) -> None:
        """Forget a model's bindings, so that the next :meth:`activate` is a whole swap-in (for measuring it)."""
        self.release(model)
        for stage in self._bundle.manifest.models[model].stages:
            self._bound.pop((model, stage), None)

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._check_active(model, stage)
        try:
            return self._bound[model, stage].run(inputs)
        except Exception as error:
            raise BackendError(f"model {model}, stage {stage}: {first_line(error)}") from error

    @property
    def private_bytes(self) -> int:
        """Bytes of weights that sessions of models in mode ``constant`` hold by now."""
        return sum(size for path, size in self._copies.items() if path in self._sessions)

    @property
    def stats(self) -> ArenaStats:
        # Private copies are never dropped: they lie beside whatever the arena held.
        return replace(self.arena.stats, peak=self.arena.stats.peak + self.private_bytes)

    def close(self) -> None:
        self._bound.clear()
        self._values.clear()
        self._sessions.clear()
        super().close()

    def _is_constant(self, model: str) -> bool:
        return self._bundle.manifest.models[model].mode == "constant"

    def _bind(self, model: str, stage: str) -> _Bound:
        if self._is_constant(model):
            return _Bound(self._session(self.baked.constant(model, stage), prepack=True), [])
        baked = self.baked.models[model][stage]
        session = self._session(self.baked.program(baked.program), prepack=False)
        return _Bound(session, [self._value(tensor) for tensor in baked.weights])

    def _value(self, tensor: str) -> ort.OrtValue:
        """A tensor as ONNX Runtime wants it: an address in the mapped blob, made once whoever uses it."""
        if tensor not in self._values:
            self._values[tensor] = ort.OrtValue.ortvalue_from_numpy(self.arena.tensor(tensor))
        return self._values[tensor]

    def _session(self, path: Path, *, prepack: bool) -> ort.InferenceSession:
        """The session of a graph; every model of a program uses the same one."""
        if path not in self._sessions:
            options = quiet(self.threads)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.use_env_allocators", "1")
            # Weights arrive as inputs: there is nothing to pack, and packing would copy.
            options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
            self._sessions[path] = open_session(path, options)
        return self._sessions[path]


def _private_copies(bundle: Bundle, baked: Baked) -> dict[Path, int]:
    """The graphs of models in mode ``constant``, and the bytes of weights that a session of each holds."""
    return {
        baked.constant(name, stage): sum(baked.tensors[tensor].length for tensor in set(made.weights))
        for name, model in bundle.manifest.models.items()
        if model.mode == "constant"
        for stage, made in baked.models[name].items()
    }

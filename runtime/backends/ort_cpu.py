"""ONNX Runtime on a CPU: one session a program, weights bound where they are mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort
from numpy.typing import NDArray

from ...bundles.blob import footprint
from ...bundles.reader import Bundle
from ...errors import BackendError, first_line
from ..memory.arena import WARM, ArenaStats, Loading
from ..memory.host_arena import HostArena
from ..ort.bake import Baked, bake
from ..ort.private_copies import choose_private_copies
from ..ort.session import Bound, open_baked, usual_threads
from .arena_backend import SwappingBackend

__all__ = ["OrtCpu", "SessionMode"]

SessionMode = Literal["bound", "constant", "packed"]
"""Bound weights are shared and swapped. Constant and packed ones, which are int8, are a copy that a session has."""


@cache
def _share_activations() -> None:
    """One activation arena for all sessions of the process: they take turns, and need the largest, not the sum.

    Three programs of the street example: 121 MB instead of 138 MB, at equal times. Once a process, or it is an error.
    """
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, None)


class OrtCpu(SwappingBackend[HostArena]):
    """The default backend; see :class:`gemel.runtime.backends.Backend`.

    Models in mode ``constant``, and INT8 models that are packed, take no part in swapping: their session holds a
    private copy of their weights from the first use on. The budget has room for all these copies; what is left of it
    is the arena's.

    Attributes:
        modes: how each model runs: ``bound``, ``constant`` or ``packed``.
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
        self.threads = threads or usual_threads()
        self.baked: Baked = bake(bundle, progress)
        self.modes, self.budget = _decided(bundle, self.baked, memory)
        self._copies = _private_copies(self.baked, self.modes)
        swapped = {segment for model in self.modes for segment in self.segments_of(model)}
        arena = {name: spec for name, spec in self.baked.segments.items() if name in swapped}
        room = self.budget - sum(self._copies.values())
        super().__init__(HostArena(self.baked.blob, self.baked.tensors, arena, room, loading))
        self._values: dict[str, ort.OrtValue] = {}
        self._sessions: dict[Path, ort.InferenceSession] = {}
        self._bound: dict[tuple[str, str], Bound] = {}

    def segments_of(self, model: str) -> tuple[str, ...]:
        return self.baked.segments_of[model] if self.modes[model] == "bound" else ()

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
        """Bytes of weights that sessions of models in mode ``constant`` or ``packed`` hold by now."""
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

    def _bind(self, model: str, stage: str) -> Bound:
        if self.modes[model] != "bound":
            return Bound(self._session(_own_graph(self.baked, model, stage, self.modes[model]), prepack=True))
        baked = self.baked.models[model][stage]
        session = self._session(self.baked.program(baked.program), prepack=False)
        return Bound(session, [self._value(tensor) for tensor in baked.weights])

    def _value(self, tensor: str) -> ort.OrtValue:
        """A tensor as ONNX Runtime wants it: an address in the mapped blob, made once whoever uses it."""
        if tensor not in self._values:
            self._values[tensor] = ort.OrtValue.ortvalue_from_numpy(self.arena.tensor(tensor))
        return self._values[tensor]

    def _session(self, path: Path, *, prepack: bool) -> ort.InferenceSession:
        """The session of a graph; every model of a program uses the same one."""
        if path not in self._sessions:
            self._sessions[path] = open_baked(path, self.threads, prepack=prepack)
        return self._sessions[path]


def _decided(bundle: Bundle, baked: Baked, memory: str | int) -> tuple[Mapping[str, SessionMode], int]:
    """How each model runs, and the bytes that the memory setting allows.

    Raises:
        InputError: too few.
    """
    modes: dict[str, SessionMode] = {
        # Of an INT8 model the manifest cannot know: it depends on what this CPU is fast at.
        name: "bound" if model.precision == "int8" else model.mode
        for name, model in bundle.manifest.models.items()
    }
    segments_of = {name: baked.segments_of[name] for name, mode in modes.items() if mode == "bound"}
    sizes = {
        segment: footprint(baked.segments[segment].length) for segments in segments_of.values() for segment in segments
    }
    private = sum(_private_copies(baked, modes).values())
    packed, allowed = choose_private_copies(memory, sizes, segments_of, baked.packings, private)
    for name in packed:
        modes[name] = "packed"
    return modes, allowed


def _private_copies(baked: Baked, modes: Mapping[str, SessionMode]) -> dict[Path, int]:
    """The graphs of models that are not bound, and the bytes of weights that a session of each holds."""
    copies = {}
    for name, mode in modes.items():
        for stage, made in baked.models[name].items() if mode != "bound" else ():
            weights = sum(baked.tensors[tensor].length for tensor in set(made.weights))
            size = weights if mode == "constant" else baked.packings[name].copies[stage]
            copies[_own_graph(baked, name, stage, mode)] = size
    return copies


def _own_graph(baked: Baked, model: str, stage: str, mode: SessionMode) -> Path:
    return baked.constant(model, stage) if mode == "constant" else baked.packed(model, stage)

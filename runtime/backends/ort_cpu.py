"""Backend ``ort-cpu``: ONNX Runtime on the CPU, with one session per program, and weights bound in the mapped blob."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import onnxruntime as ort
from numpy.typing import NDArray

from ...bundles.blob import footprint
from ...bundles.reader import Bundle
from ...bundles.verified import forget_verified
from ...errors import BackendError, first_line
from ..memory.arena_stats import ArenaStats
from ..memory.host_arena import HostArena
from ..memory.loading import WARM, Loading
from ..memory.mapped_blob import MappedBlob
from ..ort.bake import bake, is_baked
from ..ort.baked import Baked
from ..ort.private_copies import choose_private_copies
from ..ort.session import Bound, open_baked, usual_threads
from .arena_backend import ArenaBackend
from .protocol import Backend, BackendOptions

__all__ = ["OrtCpu", "SessionMode"]

SessionMode = Literal["bound", "constant", "packed"]
"""Mode in which a model runs.

``bound``: the model's weights lie in the arena, are shared with other models, and are swapped. ``constant``, or
``packed`` for int8 models: the model's sessions hold a private copy of its weights.
"""


@cache
def _share_activations() -> None:
    """Make one memory arena for the activations of all ONNX Runtime sessions of the process.

    Sessions take turns, so the arena needs the largest of their activations, not the sum. Three programs of the street
    example take 121 MB instead of 138 MB, in equal times. ONNX Runtime allows this call once per process.
    """
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, None)


class OrtCpu(ArenaBackend[HostArena]):
    """Default backend, ONNX Runtime on the CPU; see :class:`gemel.runtime.backends.Backend`.

    Models in mode ``constant`` or ``packed`` take no part in swapping: their sessions hold private copies of their
    weights from the first use on. The budget has room for all private copies; the arena gets the rest.

    Args:
        bundle: an open bundle.
        memory: memory setting that gives the budget for weights; see :mod:`gemel.bundles.budget`.
        threads: maximum number of threads that one run may use; one less than the number of cores when left out.
        loading: settings of how weights are loaded.
        progress: function called with the name of each model before the model is baked for this CPU.
        before: backend that runs now, and whose place this one takes in :meth:`take_over`. Tensors that both have stay
            where they are, and programs that both have are not opened again.

    Attributes:
        modes: model -> mode in which it runs: ``bound``, ``constant`` or ``packed``.

    Raises:
        InputError: the budget is too small.
        BackendError: ONNX Runtime refuses a model, or the device cache cannot be written.
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
        before: OrtCpu | None = None,
    ) -> None:
        _share_activations()
        self._bundle, self.loading = bundle, loading
        self.threads = threads or usual_threads()
        self.baked: Baked = bake(bundle, progress)
        self.modes, self.budget = _decide(bundle, self.baked, memory)
        self._copies = _private_copies(self.baked, self.modes)
        bound = [model for model, mode in self.modes.items() if mode == "bound"]
        swapped = {segment for model in bound for segment in self.baked.segments_of[model]}
        segments = {name: spec for name, spec in self.baked.segments.items() if name in swapped}
        room = self.budget - sum(self._copies.values())
        earlier = None if before is None else before.arena
        super().__init__(HostArena(self.baked.blob, self.baked.tensors, segments, room, loading, earlier))
        # Pages that lie in two parts of the arena count twice.
        self.budget += self.arena.budget - room
        self._values: dict[str, ort.OrtValue] = {}
        self._sessions: dict[str, _Session] = {}
        """Key of a graph's content -> its session; all models with the same program share one."""
        self._known: dict[str, _Session] = {} if before is None else dict(before._sessions)
        """Key of a graph's content -> its session in the previous backend; empty if there is no previous backend."""
        self._bound: dict[tuple[str, str], Bound] = {}

    @classmethod
    def open(cls, bundle: Bundle, name: str, options: BackendOptions) -> OrtCpu:
        """Open the ``ort-cpu`` backend for a bundle, see :class:`.protocol.BackendOpener`."""
        return cls(
            bundle,
            memory=options.memory,
            threads=options.threads,
            loading=options.loading,
            progress=options.progress,
            before=options.before if isinstance(options.before, OrtCpu) else None,
        )

    @classmethod
    def is_prepared(cls, bundle: Bundle) -> bool:
        return is_baked(bundle)

    def segments_of(self, model: str) -> tuple[str, ...]:
        segments = self.baked.segments_of[model] if self.modes[model] == "bound" else ()
        return tuple(part for segment in segments for part in self.arena.parts_of[segment])

    @property
    def folder(self) -> Path:
        return self.baked.folder

    def prepare(self, model: str) -> None:
        # Nothing is loaded: weights have addresses also when they are not in memory.
        for stage in self._bundle.manifest.models[model].stages:
            if (model, stage) not in self._bound:
                self._bound[model, stage] = self._bind(model, stage)

    def take_over(self, before: Backend) -> None:
        if isinstance(before, OrtCpu):
            self.arena.take_over(before.arena)
        # Private copies of weights that only the previous backend needed must not stay in memory.
        self._known.clear()

    @property
    def kept_bytes(self) -> int:
        return self.arena.kept_bytes

    def activate(self, model: str) -> None:
        super().activate(model)
        try:
            self.prepare(model)
        except BaseException:
            self.release(model)
            raise

    def unbind(self, model: str) -> None:
        """Release a model and forget its bindings, so that the next :meth:`activate` makes a full swap-in."""
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
        """Bytes of the private copies of weights that all open sessions hold.

        Sessions of models in mode ``constant`` (weights are constants of the graph) and ``packed`` (int8 weights, which
        ONNX Runtime re-arranges) hold private copies.
        """
        return sum(size for key, size in self._copies.items() if key in self._sessions)

    @property
    def stats(self) -> ArenaStats:
        # Private copies of weights are never dropped, so their bytes add to the peak of the arena.
        return replace(self.arena.stats, peak=self.arena.stats.peak + self.private_bytes)

    def close(self) -> None:
        self._bound.clear()
        self._values.clear()
        self._known.clear()
        for session in self._sessions.values():
            if session.blob is not None:
                session.blob.close()
        self._sessions.clear()
        super().close()

    def _bind(self, model: str, stage: str) -> Bound:
        """Return a stage's session with the stage's weights bound; a session with a private copy has none to bind."""
        mode = self.modes[model]
        if mode != "bound":
            path, key = _own_graph(self.baked, model, stage, mode), _own_key(self.baked, model, stage, mode)
            return Bound(self._session(key, path, prepack=True))
        baked = self.baked.models[model][stage]
        session = self._session(baked.program, self.baked.program(baked.program), prepack=False)
        return Bound(session, [self._value(tensor) for tensor in baked.weights])

    def _value(self, tensor: str) -> ort.OrtValue:
        """Return ONNX Runtime's view of a tensor's bytes in the mapped blob; all models share one view of a tensor."""
        if tensor not in self._values:
            self._values[tensor] = ort.OrtValue.ortvalue_from_numpy(self.arena.tensor(tensor))
        return self._values[tensor]

    def _session(self, key: str, path: Path, *, prepack: bool) -> ort.InferenceSession:
        """Return the session of a graph file; reuse the previous backend's if it has the same graph."""
        if key not in self._sessions:
            if (known := self._known.get(key)) is None:
                known = _Session(self._opened(path, prepack=prepack), self.arena.blob if prepack else None)
            if known.blob is not None:
                known.blob.hold()
            self._sessions[key] = known
        return self._sessions[key].session

    def _opened(self, path: Path, *, prepack: bool) -> ort.InferenceSession:
        """Open the session of a graph file.

        Raises:
            BackendError: ONNX Runtime refuses the file, or another program has overwritten the weights.
        """
        weights = self.arena.blob.file
        if prepack and weights.overwritten:
            raise BackendError(
                f"{weights.path}: another program has overwritten it; {path.name} cannot be opened any more"
            )
        try:
            session = open_baked(path, self.threads, prepack=prepack)
        except BackendError:
            # The file may have been damaged since it was verified. The next start verifies it again.
            forget_verified(self.folder)
            raise
        if prepack and not weights.guarded:
            # ONNX Runtime maps the weights of a graph that has them outside.
            weights.take_mappings()
        return session


class _Session(NamedTuple):
    """Session of a graph, and the blob whose weights the session may have mapped; None if it has no weights."""

    session: ort.InferenceSession
    blob: MappedBlob | None


def _decide(bundle: Bundle, baked: Baked, memory: str | int) -> tuple[Mapping[str, SessionMode], int]:
    """Return the mode in which each model runs, and the bytes that the memory setting allows for weights.

    Raises:
        InputError: the memory setting is too small.
    """
    modes: dict[str, SessionMode] = {
        # The manifest's mode does not count for int8 models: the faster mode depends on this CPU.
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


def _private_copies(baked: Baked, modes: Mapping[str, SessionMode]) -> dict[str, int]:
    """Return key of a graph -> bytes of the private copy of weights in its session, for models that are not bound."""
    copies = {}
    for name, mode in modes.items():
        for stage, made in baked.models[name].items() if mode != "bound" else ():
            weights = sum(baked.tensors[tensor].length for tensor in set(made.weights))
            size = weights if mode == "constant" else baked.packings[name].copies[stage]
            copies[_own_key(baked, name, stage, mode)] = size
    return copies


def _own_graph(baked: Baked, model: str, stage: str, mode: SessionMode) -> Path:
    """Return the file of the stage's graph that has the weights inside."""
    return baked.constant(model, stage) if mode == "constant" else baked.packed(model, stage)


def _own_key(baked: Baked, model: str, stage: str, mode: SessionMode) -> str:
    """Return a key that is equal for graphs with weights inside that compute the same."""
    path, made = _own_graph(baked, model, stage, mode), baked.models[model][stage]
    # The file of a constant graph says where its weights lie in the blob, which differs between bundles.
    return f"{made.program} {' '.join(made.weights)}" if mode == "constant" else baked.files[path.name].sha256

"""Backend ``ort-cpu``: ONNX Runtime on the CPU, with one session per program, and weights bound in the mapped blob."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import onnxruntime as ort
from numpy.typing import NDArray

from ...bundles.reader import Bundle
from ...bundles.verified import forget_verified
from ...errors import BackendError, first_line
from ..memory.arena_stats import ArenaStats
from ..memory.host_arena import HostArena
from ..memory.loading import WARM, Loading
from ..memory.mapped_blob import MappedBlob
from ..ort.bake import bake, is_baked
from ..ort.baked import Baked, PrivateCopy
from ..ort.session import Bound, open_baked, usual_threads
from .arena_backend import ArenaBackend, images_within
from .protocol import Backend, BackendOptions, StemTimes
from .session_modes import decide_modes, own_graph, own_key, private_bytes_of
from .share_stems import shared_stems

__all__ = ["BATCH_PIXELS", "OrtCpu", "Runnable"]

BATCH_PIXELS = 1 << 20
"""Maximum number of pixels of all frames of a batch on a CPU.

The activations of a batch take memory: 100 to 120 bytes per pixel in ResNet-18 and Tiny-YOLOv3, so about 120 MB."""


class Runnable(Protocol):
    """Stage of a model that is ready to run."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...


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
        offers = self._offers(progress)
        self.modes, self.budget = decide_modes(bundle, self.baked, offers, memory)
        self._copies = private_bytes_of(self.baked, offers, self.modes)
        bound = [model for model, mode in self.modes.items() if mode == "bound"]
        swapped = {segment for model in bound for segment in self.baked.needs(model)}
        segments = {name: spec for name, spec in self.baked.segments.items() if name in swapped}
        made = self.baked.computed
        computed = replace(made, segments={name: spec for name, spec in made.segments.items() if name in swapped})
        room = self.budget - sum(self._copies.values())
        earlier = None if before is None else before.arena
        super().__init__(
            HostArena(
                *(self.baked.blob, self.baked.tensors, segments, room, loading, earlier),
                forms=self.baked.forms,
                computed=computed,
            )
        )
        # Pages that lie in two parts of the arena count twice.
        self.budget += self.arena.budget - room
        self._values: dict[str, ort.OrtValue] = {}
        self._sessions: dict[str, _Session] = {}
        """Key of a graph's content -> its session; all models with the same program share one."""
        self._known: dict[str, _Session] = {} if before is None else dict(before._sessions)
        """Key of a graph's content -> its session in the previous backend; empty if there is no previous backend."""
        self._bound: dict[tuple[str, str], Runnable] = {}
        content = bundle.manifest
        self._in_parts = {content.queries[query].model for query in shared_stems(content, self.stems, content.queries)}
        """Models whose queries can share a run of the model's stem with other queries."""

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
        segments = self.baked.needs(model) if self.modes[model] == "bound" else ()
        return tuple(part for segment in segments for part in self.arena.parts_of[segment])

    @property
    def folder(self) -> Path:
        return self.baked.folder

    @property
    def stems(self) -> Mapping[str, StemTimes]:
        # A part with a private copy of its weights would hold a second copy of them.
        return {
            name: StemTimes(stem.main_ms, stem.stem_ms, stem.rest_ms)
            for name, stem in self.baked.stems.items()
            if self.modes[name] == "bound"
        }

    def prepare(self, model: str) -> None:
        # Nothing is loaded: weights have addresses also when they are not in memory.
        parts = ("stem", "rest") if model in self._in_parts else ()
        for stage in (*self._bundle.manifest.models[model].stages, *parts):
            self._runnable(model, stage)

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
        for stage in (*self._bundle.manifest.models[model].stages, "stem", "rest"):
            self._bound.pop((model, stage), None)

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._check_active(model, stage)
        try:
            return self._runnable(model, stage).run(inputs)
        except Exception as error:
            raise BackendError(f"model {model}, stage {stage}: {first_line(error)}") from error

    def batch_limit(self, model: str) -> int:
        return images_within(self._bundle, model, BATCH_PIXELS)

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

    def _offers(self, progress: Callable[[str], None]) -> Mapping[str, PrivateCopy]:
        """Return model -> private copy that the model may run on if that is faster and the memory setting has room."""
        return self.baked.packings

    def _runnable(self, model: str, stage: str) -> Runnable:
        """Return a stage that is ready to run; the stage is bound at the first call."""
        if (model, stage) not in self._bound:
            self._bound[model, stage] = self._bind(model, stage)
        return self._bound[model, stage]

    def _bind(self, model: str, stage: str) -> Runnable:
        """Return a stage's session with the stage's weights bound; a session with a private copy has none to bind."""
        mode = self.modes[model]
        if mode != "bound":
            path, key = own_graph(self.baked, model, stage, mode), own_key(self.baked, model, stage, mode)
            return Bound(self._session(key, path, prepack=True))
        baked = self.baked.stage(model, stage)
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
    """ONNX Runtime session of a graph, and the blob that holds the weights which the session may have mapped.

    The blob is None for the session of a program, which holds no weights.
    """

    session: ort.InferenceSession
    blob: MappedBlob | None

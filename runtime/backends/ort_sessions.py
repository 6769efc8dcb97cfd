"""What gemel is compared with: an ordinary ONNX Runtime session a model, made to load it and deleted to unload it.

Nothing is shared, and a model comes and goes as a whole. The runner, the planner and the budget are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...bundles.budget import budget
from ...bundles.reader import Bundle
from ...errors import BackendError, first_line
from ..device_cache import folder_for
from ..memory.arena import WARM, Arena, Loading
from ..memory.host_arena import forget
from ..ort.session import open_session, quiet
from .arena_backend import SwappingBackend

__all__ = ["OrtSessions"]

_Sessions = dict[str, ort.InferenceSession]


class _SessionArena(Arena):
    """Sessions of models, a segment each, with the bytes of their weights."""

    def __init__(self, bundle: Bundle, allowed: int, threads: int, loading: Loading) -> None:
        super().__init__(_sizes(bundle), allowed, loading)
        self.sessions: dict[str, _Sessions] = {}
        self._bundle = bundle
        self._options = quiet(threads)

    def _load(self, segment: str) -> None:
        stages = self._bundle.manifest.models[segment].stages
        self.sessions[segment] = {
            name: open_session(self._bundle.file(stage.file), self._options) for name, stage in stages.items()
        }

    def _drop(self, segment: str) -> None:
        self.sessions.pop(segment, None)
        if self._loading.cold:
            content = self._bundle.manifest
            for name in content.models[segment].segments:
                spec = content.segments[name]
                forget(self._bundle.file(content.blob), spec.offset, spec.length)


class OrtSessions(SwappingBackend[_SessionArena]):
    """See :class:`gemel.runtime.backends.Backend`; a model is its own and only segment."""

    name = "ort-sessions"

    def __init__(
        self,
        bundle: Bundle,
        *,
        memory: str | int = "all",
        threads: int = 1,
        loading: Loading = WARM,
        progress: Callable[[str], None] = lambda model: None,
    ) -> None:
        self.threads, self.loading = threads, loading
        self.folder: Path = folder_for(bundle, self.name)
        sizes = _sizes(bundle)
        self.budget = budget(memory, sum(sizes.values()), sizes.values())
        super().__init__(_SessionArena(bundle, self.budget, threads, loading))

    def segments_of(self, model: str) -> tuple[str, ...]:
        return (model,)

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._check_active(model, stage)
        session = self.arena.sessions[model][stage]
        names = [port.name for port in session.get_outputs()]
        try:
            found = session.run(names, {name: np.ascontiguousarray(array) for name, array in inputs.items()})
        except Exception as error:
            raise BackendError(f"model {model}, stage {stage}: {first_line(error)}") from error
        return dict(zip(names, found, strict=True))

    def close(self) -> None:
        super().close()
        self.arena.sessions.clear()


def _sizes(bundle: Bundle) -> dict[str, int]:
    """Model to the bytes of its weights; a session of each stage holds its own copy."""
    tensors = bundle.manifest.tensors
    return {
        name: sum(tensors[each].length for stage in model.stages.values() for each in set(stage.weights))
        for name, model in bundle.manifest.models.items()
    }

"""Baseline to compare gemel with: ordinary ONNX Runtime sessions, opened to load a model and deleted to unload it.

Models share no weights, and each model is loaded and unloaded as a whole. The runner, the planner and the budget are
the same as for the other backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...bundles.budget import budget
from ...bundles.reader import Bundle
from ...errors import BackendError, first_line
from ..device_cache import folder_for
from ..memory.arena import Arena
from ..memory.loading import WARM, Loading
from ..memory.mapped_blob import forget
from ..ort.session import open_session, quiet
from .arena_backend import ArenaBackend, images_within
from .ort_cpu import BATCH_PIXELS
from .protocol import BackendOptions

__all__ = ["OrtSessions"]


class _LoadedSessions(Arena):
    """Arena of the sessions of loaded models. Each model is one segment, with the bytes of its weights.

    Args:
        bundle: an open bundle.
        budget: maximum bytes of weights that may be resident at once.
        threads: maximum number of threads that one run may use.
        loading: settings of how models are loaded.
    """

    def __init__(self, bundle: Bundle, budget: int, threads: int, loading: Loading) -> None:
        super().__init__(_sizes(bundle), budget, loading)
        self.sessions: dict[str, dict[str, ort.InferenceSession]] = {}
        """Model -> stage -> session of the stage, for the models that are loaded."""
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


class OrtSessions(ArenaBackend[_LoadedSessions]):
    """Backend whose models share no weights, see :class:`gemel.runtime.backends.Backend`. Each model is one segment.

    Args:
        bundle: an open bundle.
        memory: memory setting that gives the budget for weights; see :mod:`gemel.bundles.budget`.
        threads: maximum number of threads that one run may use.
        loading: settings of how models are loaded.

    Raises:
        InputError: the budget is too small.
    """

    name = "ort-sessions"

    def __init__(
        self,
        bundle: Bundle,
        *,
        memory: str | int = "all",
        threads: int = 1,
        loading: Loading = WARM,
    ) -> None:
        self._bundle, self.threads, self.loading = bundle, threads, loading
        self.folder: Path = folder_for(bundle, self.name)
        sizes = _sizes(bundle)
        self.budget = budget(memory, sum(sizes.values()), sizes.values())
        super().__init__(_LoadedSessions(bundle, self.budget, threads, loading))

    @classmethod
    def open(cls, bundle: Bundle, name: str, options: BackendOptions) -> OrtSessions:
        """Open the ``ort-sessions`` backend for a bundle, see :class:`.protocol.BackendOpener`."""
        return cls(bundle, memory=options.memory, threads=options.threads, loading=options.loading)

    def segments_of(self, model: str) -> tuple[str, ...]:
        return (model,)

    def batch_limit(self, model: str) -> int:
        return images_within(self._bundle, model, BATCH_PIXELS)

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
    """Return model -> bytes of its weights. Stages do not share weights: every session holds its own copy."""
    size = bundle.manifest.bytes_of
    return {
        name: sum(size(each) for stage in model.stages.values() for each in set(stage.weights))
        for name, model in bundle.manifest.models.items()
    }

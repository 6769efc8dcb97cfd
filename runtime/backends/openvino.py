"""Backends ``openvino`` and ``openvino-fast``: OpenVINO's CPU plugin, with a private copy of the weights per model.

OpenVINO arranges weights for its kernels when a program is compiled, so models share none. Each model is loaded from
the device cache and unloaded as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from ...bundles.budget import budget
from ...bundles.reader import Bundle
from ...bundles.verified import forget_verified
from ...errors import BackendError, first_line
from ..memory.arena import Arena
from ..memory.loading import WARM, Loading
from ..memory.mapped_blob import forget
from ..ort.session import usual_threads
from ..ov.compiled_cache import CompiledModels, compiled_models, has_compiled_models
from ..ov.openvino_cpu import OvPrecision, OvProgram, load_program
from .arena_backend import ArenaBackend
from .on_host import OnHost
from .protocol import BackendOptions

__all__ = ["OpenVino", "OpenVinoFast"]

_log = logging.getLogger(__name__)


class _LoadedPrograms(Arena):
    """Arena of the compiled programs of loaded models. Each model is one segment.

    Args:
        bundle: an open bundle.
        compiled: the bundle's device cache.
        sizes: model -> bytes of memory that its weights take when it is loaded.
        budget: maximum bytes of weights that may be resident at once.
        threads: maximum number of threads that one run may use.
        precision: precision of layers that are not int8.
        loading: settings of how models are loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        compiled: CompiledModels,
        sizes: Mapping[str, int],
        budget: int,
        threads: int,
        precision: OvPrecision,
        loading: Loading,
    ) -> None:
        super().__init__(sizes, budget, loading)
        self.programs: dict[str, dict[str, OvProgram | OnHost]] = {}
        """Model -> stage -> program that is ready to run, for the models that are loaded."""
        self._bundle, self._compiled = bundle, compiled
        self._threads, self._precision = threads, precision

    def _load(self, segment: str) -> None:
        stages = self._bundle.manifest.models[segment].stages
        self.programs[segment] = {name: self._opened(segment, name) for name in stages}

    def _drop(self, segment: str) -> None:
        self.programs.pop(segment, None)
        if self._loading.cold:
            for path in self._files(segment):
                forget(path, 0, path.stat().st_size)

    def _opened(self, model: str, stage: str) -> OvProgram | OnHost:
        """Load the program of a stage from the device cache; open an ONNX Runtime session if OpenVINO refused it."""
        if model in self._compiled.left_out:
            return OnHost(self._bundle.file(self._bundle.manifest.models[model].stages[stage].file), self._threads)
        try:
            return load_program(self._compiled.path(model, stage), self._threads, self._precision)
        except BackendError:
            # The file may have been damaged since it was verified. The next start verifies it again.
            forget_verified(self._compiled.folder)
            raise

    def _files(self, model: str) -> list[Path]:
        """Return the files that a model's weights are loaded from."""
        if model in self._compiled.left_out:
            return [self._bundle.file(self._bundle.manifest.blob)]
        return [self._compiled.path(model, stage) for stage in self._bundle.manifest.models[model].stages]


class OpenVino(ArenaBackend[_LoadedPrograms]):
    """Backend of OpenVINO on the CPU, see :class:`gemel.runtime.backends.Backend`.

    Models share no weights; each model is one segment. A model that OpenVINO refuses runs in ONNX Runtime, and a
    warning names it.

    Args:
        bundle: an open bundle.
        memory: memory setting that gives the budget for weights; see :mod:`gemel.bundles.budget`.
        threads: maximum number of threads that one run may use; one less than the number of cores when left out.
        loading: settings of how models are loaded.
        progress: function called with the name of each model before it is compiled.

    Raises:
        InputError: the budget is too small.
        MissingExtraError: OpenVINO is not installed.
        BackendError: no folder for the device cache can be written.
    """

    name = "openvino"
    precision: ClassVar[OvPrecision] = "f32"
    """Precision of layers that are not int8."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        memory: str | int = "all",
        threads: int | None = None,
        loading: Loading = WARM,
        progress: Callable[[str], None] = lambda model: None,
    ) -> None:
        self.loading, self.threads = loading, threads or usual_threads()
        compiled = compiled_models(bundle, self.precision, progress)
        for model, reason in compiled.left_out.items():
            _log.warning("model %s runs in ONNX Runtime: %s", model, reason)
        self.folder: Path = compiled.folder
        sizes = _sizes(bundle, compiled)
        self.budget = budget(memory, sum(sizes.values()), sizes.values())
        arena = _LoadedPrograms(bundle, compiled, sizes, self.budget, self.threads, self.precision, loading)
        super().__init__(arena)

    @classmethod
    def open(cls, bundle: Bundle, name: str, options: BackendOptions) -> OpenVino:
        """Open the backend for a bundle, see :class:`.protocol.BackendOpener`."""
        return cls(
            bundle,
            memory=options.memory,
            threads=options.threads,
            loading=options.loading,
            progress=options.progress,
        )

    @classmethod
    def is_prepared(cls, bundle: Bundle) -> bool:
        return has_compiled_models(bundle, cls.precision)

    def segments_of(self, model: str) -> tuple[str, ...]:
        return (model,)

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._check_active(model, stage)
        try:
            return self.arena.programs[model][stage].run(inputs)
        except Exception as error:
            raise BackendError(f"model {model}, stage {stage}: {first_line(error)}") from error

    def close(self) -> None:
        super().close()
        self.arena.programs.clear()


class OpenVinoFast(OpenVino):
    """Backend of OpenVINO that computes in the precision OpenVINO chooses, such as bf16 on CPUs with bf16 units."""

    name = "openvino-fast"
    precision = "default"


def _sizes(bundle: Bundle, compiled: CompiledModels) -> dict[str, int]:
    """Return model -> bytes of memory that its weights take. No stage shares weights with another."""
    content = bundle.manifest
    sizes = {name: sum(file.weights for file in stages.values()) for name, stages in compiled.models.items()}
    for name in compiled.left_out:
        stages = content.models[name].stages.values()
        sizes[name] = sum(content.bytes_of(each) for stage in stages for each in set(stage.weights))
    return {name: sizes[name] for name in content.models}

"""Backends ``tensorrt`` and ``tensorrt-rtx``: one engine per program, which all models with the program share.

An engine either reads weights at their addresses in the device arena (bound), or keeps a private copy of the weights
that is filled from the arena (refitted). Measurements on the device decide which of the two is used.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ...bundles.manifest import Stage
from ...bundles.program import read_model, split_model
from ...bundles.reader import Bundle
from ...errors import BackendError, InputError
from ..device import Device
from ..engines.executables import Engine, EngineOpener
from ..engines.library import Library, find_library
from ..engines.record import Engines
from ..engines.store import BuildProgress, engines_for
from ..memory.loading import WARM, Loading
from .on_device import Executable, OnDevice, allowed, open_on_card
from .on_host import OnHost
from .protocol import BackendOptions

__all__ = ["TensorRt"]

_log = logging.getLogger(__name__)


class TensorRt(OnDevice):
    """Backend of TensorRT or TensorRT for RTX, see :class:`gemel.runtime.backends.Backend`.

    Engines are read from the device cache. Engines that are missing, or were built for another device or another
    version of the library, are built before the arena takes its memory. A program that is faster with its weights as
    constants is *refitted* if the budget has room for a private copy of the weights: when another model with the
    program runs, that model's weights are copied from the arena into the engine.

    Args:
        bundle: an open bundle.
        device: device that runs the models. The backend closes the device.
        library: TensorRT or TensorRT for RTX.
        memory: memory setting that gives the budget for weights; see :mod:`gemel.bundles.budget`.
        threads: maximum number of CPU threads for programs that the library refuses.
        loading: settings of how weights are loaded.
        progress: function called before the engine of each program is built; see
            :data:`gemel.runtime.engines.store.BuildProgress`.

    Raises:
        InputError: the budget is too small.
        BackendError: the library refuses a program, or the device has too little free memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        library: Library,
        *,
        memory: str | int = "all",
        threads: int = 1,
        loading: Loading = WARM,
        progress: BuildProgress = lambda model, number, count: None,
    ) -> None:
        self.name = library.backend
        self._library, self._progress = library, progress
        self._engines = engines_for(bundle, library, device, progress)
        copies = _copies(bundle, self._engines)
        if copies and not _fit(bundle, device, memory, sum(copies.values())):
            _log.warning(
                "memory: %s has no room for %d bytes of copies: %d programs run with bound weights, which is slower",
                memory,
                sum(copies.values()),
                len(copies),
            )
            copies = {}
        super().__init__(bundle, device, memory=memory, threads=threads, loading=loading, copies=copies)
        self._opener = EngineOpener(library, device, self.stream)

    @classmethod
    def open(cls, bundle: Bundle, name: str, options: BackendOptions) -> TensorRt:
        """Open a TensorRT backend for a bundle on the first card, see :class:`.protocol.BackendOpener`."""
        # A missing library is reported before a card is opened.
        library = find_library(name)
        return open_on_card(
            lambda device: cls(
                bundle,
                device,
                library,
                memory=options.memory,
                threads=options.threads,
                loading=options.loading,
                progress=lambda model, number, count: options.progress(model),
            )
        )

    @property
    def folder(self) -> Path:
        return self._engines.folder

    def close(self) -> None:
        self._opener.close()
        super().close()

    def _open(self, stage: Stage) -> Executable | OnHost:
        if stage.program in self._engines.refused:
            _log.info("%s runs on the CPU: %s", stage.file, self._engines.refused[stage.program])
            return OnHost(self._bundle.file(stage.file), self.threads)
        engine = self._opened(stage)
        if engine is None:
            _log.warning("%s: its engine is not for this device or version; all are built anew", stage.file)
            self._engines = engines_for(self._bundle, self._library, self.device, self._progress, fresh=True)
            engine = self._opened(stage)
        if engine is None:
            raise BackendError(f"{stage.file}: {self._library.refusal(self._library.logger().errors)}")
        return engine

    def _opened(self, stage: Stage) -> Engine | None:
        """Open and return the engine of a stage's program; return None if the library cannot use the engine."""
        program = stage.program
        # An engine that was built again may have got another mode.
        if program in self._copies and self._engines.engines[program].refit is not None:
            data = self._engines.path(program, "refit").read_bytes()
            return self._opener.refitted(
                data, stage, split_model(read_model(self._bundle.file(stage.file).read_bytes())).proto
            )
        # The program has no private copy after all. The bytes of the budget for the copy stay unused, because the arena
        # cannot grow.
        self._copies.pop(program, None)
        return self._opener.bound(self._engines.path(program).read_bytes(), stage)


def _copies(bundle: Bundle, engines: Engines) -> dict[str, int]:
    """Return program -> bytes of the weights that the program's refitted engine holds."""
    content = bundle.manifest
    return {
        stage.program: sum(content.bytes_of(tensor) for tensor in stage.weights)
        for model in content.models.values()
        for stage in model.stages.values()
        if stage.program in engines.engines and engines.engines[stage.program].refit is not None
    }


def _fit(bundle: Bundle, device: Device, memory: str | int, copies: int) -> bool:
    """Return whether the budget and the device have room for the arena and ``copies`` bytes of private copies."""
    try:
        needed = min(allowed(bundle, memory, copies), allowed(bundle, "all", copies))
    except InputError:
        return False
    return needed <= device.memory()[0]

"""TensorRT, and TensorRT for RTX: one engine a program, whatever the number of models.

Its weights are bound where the device arena has them, or copied from there into the engine: what was measured to be
faster.
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
from ..engines.library import Library
from ..engines.record import Engines
from ..engines.store import BuildProgress, engines_for
from ..memory.arena import WARM, Loading
from .on_device import Executable, OnDevice, OnHost, allowed

__all__ = ["TensorRt"]

_log = logging.getLogger(__name__)


class TensorRt(OnDevice):
    """See :class:`gemel.runtime.backends.Backend`.

    Engines come from the device cache; where they are missing, or not for this device or version, they are built,
    before the arena takes its memory. A program that is faster with its weights as constants, and for whose copy the
    budget has room, is *refitted*: weights are copied from the arena where another model's were in the engine.

    Args:
        bundle: an open bundle.
        device: closed with the backend.
        library: TensorRT or TensorRT for RTX.
        memory: budget for weights.
        threads: of what is left to the CPU; the device runs models.
        loading: how weights come.
        progress: told of each program whose engine is built.

    Raises:
        BackendError: the library refuses a program.
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
        """The engine of a stage's program; None where the library cannot use it."""
        program = stage.program
        # Those that were built anew may have got another mode.
        if program in self._copies and self._engines.engines[program].refit is not None:
            data = self._engines.path(program, "refit").read_bytes()
            return self._opener.refitted(
                data, stage, split_model(read_model(self._bundle.file(stage.file).read_bytes())).proto
            )
        # So it has no copy, whatever was planned. What the budget has for it stays free: the arena has its memory.
        self._copies.pop(program, None)
        return self._opener.bound(self._engines.path(program).read_bytes(), stage)


def _copies(bundle: Bundle, engines: Engines) -> dict[str, int]:
    """Of each program that is to be refitted, the bytes of the weights in its engine."""
    content = bundle.manifest
    return {
        stage.program: sum(content.tensors[tensor].length for tensor in stage.weights)
        for model in content.models.values()
        for stage in model.stages.values()
        if stage.program in engines.engines and engines.engines[stage.program].refit is not None
    }


def _fit(bundle: Bundle, device: Device, memory: str | int, copies: int) -> bool:
    """Whether there is room for copies beside the arena, both in the budget and on the device."""
    try:
        needed = min(allowed(bundle, memory, copies), allowed(bundle, "all", copies))
    except InputError:
        return False
    return needed <= device.memory()[0]

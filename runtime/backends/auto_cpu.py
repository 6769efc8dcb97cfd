"""Backend ``auto-cpu``: ``ort-cpu``, and OpenVINO for models that are faster in it, where memory has room for that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...bundles.reader import Bundle
from ...bundles.verified import forget_verified
from ...errors import BackendError
from ..ort.baked import PrivateCopy
from ..ov.compiled_cache import compiled_models, has_compiled_models
from ..ov.openvino_cpu import OvPrecision, OvProgram, load_program
from .ort_cpu import OrtCpu, Runnable
from .session_modes import own_key

__all__ = ["AutoCpu"]

_log = logging.getLogger(__name__)


class AutoCpu(OrtCpu):
    """Backend that runs each model in ONNX Runtime or in OpenVINO, whichever is faster and fits into memory.

    Both are timed once, when the device cache is made. OpenVINO holds a private copy of a model's weights, which stays
    loaded like those of ``ort-cpu``. A model gets one if that is faster by more than the uncertainty of the times
    (5 %) and if no other model has to be swapped more because of it. All other models are bound and share weights.
    OpenVINO computes in float32, or in bf16 if ``gemel eval --accept bf16`` found that the queries keep their accuracy.

    The arguments are those of :class:`.ort_cpu.OrtCpu`.

    Raises:
        InputError: the budget is too small.
        MissingExtraError: OpenVINO is not installed.
        BackendError: ONNX Runtime refuses a model, or the device cache cannot be written.
    """

    name = "auto-cpu"

    def __init__(self, bundle: Bundle, **options: Any) -> None:
        super().__init__(bundle, **options)
        self._programs: dict[str, OvProgram] = {}
        """Key of a stage -> its compiled program, for the stages that have been used."""

    @classmethod
    def is_prepared(cls, bundle: Bundle) -> bool:
        return super().is_prepared(bundle) and has_compiled_models(bundle, "f32", measured=True)

    @property
    def folder(self) -> Path:
        return self._compiled.folder

    @property
    def private_bytes(self) -> int:
        return super().private_bytes + sum(self._copies[key] for key in self._programs)

    def batch_limit(self, model: str) -> int:
        # OpenVINO's programs are compiled for one image.
        return 1 if self.modes[model] == "openvino" else super().batch_limit(model)

    def close(self) -> None:
        self._programs.clear()
        super().close()

    def _offers(self, progress: Callable[[str], None]) -> Mapping[str, PrivateCopy]:
        self._compiled = compiled_models(self._bundle, "f32", progress, self.baked)
        for model, queries in self._compiled.bf16.items():
            agreed = ", ".join(f"{name} {each.agreement:.4f} on {each.frames} frames" for name, each in queries.items())
            _log.info("model %s may run in bf16: agreement with float32 %s", model, agreed)
        offers = dict(super()._offers(progress))
        for model, copy in self._compiled.copies.items():
            if model not in offers or copy.packed_ms * offers[model].bound_ms < offers[model].packed_ms * copy.bound_ms:
                offers[model] = copy
        return {model: copy for model, copy in offers.items() if self._may_be_bound(model)}

    def _bind(self, model: str, stage: str) -> Runnable:
        if self.modes[model] != "openvino":
            return super()._bind(model, stage)
        key = own_key(self.baked, model, stage, "openvino")
        if key not in self._programs:
            try:
                precision: OvPrecision = "default" if model in self._compiled.bf16 else "f32"
                self._programs[key] = load_program(self._compiled.path(model, stage), self.threads, precision)
            except BackendError:
                # The file may have been damaged since it was verified. The next start verifies it again.
                forget_verified(self._compiled.folder)
                raise
        return self._programs[key]

    def _may_be_bound(self, model: str) -> bool:
        """Return whether a model can run on shared weights in ONNX Runtime. No other model is moved to OpenVINO.

        Models in mode ``constant`` that are not int8 keep their private copies in ONNX Runtime.
        """
        spec = self._bundle.manifest.models[model]
        return spec.precision == "int8" or spec.mode == "bound"

"""OpenVINO's CPU plugin: import of the library with its telemetry off, and compiling, loading and running programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...bundles.manifest import Stage
from ...errors import BackendError, MissingExtraError, first_line
from ..ort.session import refuse_files_elsewhere

__all__ = [
    "OvPrecision",
    "OvProgram",
    "compile_program",
    "computes_in_bf16",
    "load_program",
    "openvino_version",
    "reason",
]

OvPrecision = Literal["f32", "default"]
"""Precision in which OpenVINO computes layers that are not int8.

``f32``: float32. ``default``: what OpenVINO chooses for the CPU, such as bf16 if the CPU has bf16 units.
"""

_DEVICE = "CPU"
_TELEMETRY = "openvino_telemetry"
"""Module that reports to Google Analytics as soon as OpenVINO is imported. Without it, OpenVINO uses a stub."""


def openvino_version() -> str:
    """Return the version of OpenVINO.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    return str(_openvino().__version__)


def computes_in_bf16() -> bool:
    """Return whether OpenVINO computes float layers in bf16 on this CPU, unless it is told to compute in float32.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    return "BF16" in _core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")


class OvProgram:
    """Program with its weights that OpenVINO has compiled for this CPU. It holds a private copy of the weights.

    Args:
        compiled: OpenVINO's compiled model.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._outputs = [port.any_name for port in compiled.outputs]
        shapes = [port.partial_shape for port in compiled.inputs]
        self._one_image = not any(shape.is_dynamic for shape in shapes)
        """Whether the program takes one image at a time, so that several images are run one after the other."""

    @property
    def precision(self) -> str:
        """Precision that OpenVINO computes float layers in, such as ``f32`` or ``bf16``."""
        return str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the program on inputs (name -> array), and return output name -> array that the caller owns."""
        counts = {len(array) for array in inputs.values()} if self._one_image else set()
        if len(counts) != 1 or counts == {1}:
            return self._infer(inputs)
        parts = [
            self._infer({name: array[index : index + 1] for name, array in inputs.items()})
            for index in range(counts.pop())
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = self._request.infer(
            {name: np.ascontiguousarray(array) for name, array in inputs.items()}, share_inputs=True
        )
        return {name: found[index] for index, name in enumerate(self._outputs)}

    def export(self) -> bytes:
        """Return the compiled program with its weights, as :func:`load_program` reads it."""
        data = self._compiled.export_model()
        return bytes(data) if isinstance(data, bytes) else bytes(data.getvalue())


def compile_program(path: Path, stage: Stage, threads: int, precision: OvPrecision) -> OvProgram:
    """Compile a stage of a bundle for this CPU. The weights are read from the blob that the stage's file names.

    A stage whose ports differ from one image only in their first dimension is compiled for one image: kernels for
    shapes that are known take 6 to 12 % less time in the street example, and weights are arranged when the program is
    loaded instead of in its first run.

    Args:
        path: ONNX file of the stage, with external weights in its own folder.
        stage: the stage, as the manifest has it.
        threads: maximum number of threads that one run may use.
        precision: precision of layers that are not int8.

    Raises:
        BackendError: OpenVINO refuses the program, or its weights lie outside the folder of ``path``.
        MissingExtraError: OpenVINO is not installed.
    """
    refuse_files_elsewhere(path, path.read_bytes())
    core = _core()
    try:
        model = core.read_model(str(path))
        if stage.takes_batches:
            model.reshape({port.name: [1, *port.shape[1:]] for port in stage.inputs})
        return OvProgram(core.compile_model(model, _DEVICE, _settings(threads, precision)))
    except Exception as error:
        raise BackendError(f"{path}: OpenVINO {openvino_version()} refuses it: {reason(error)}") from error


def load_program(path: Path, threads: int, precision: OvPrecision) -> OvProgram:
    """Load a program that was compiled before, from the file that holds what :meth:`OvProgram.export` returned.

    Raises:
        BackendError: OpenVINO refuses the file, which another version or another CPU may have written.
        MissingExtraError: OpenVINO is not installed.
    """
    core = _core()
    try:
        return OvProgram(core.import_model(path.read_bytes(), _DEVICE, _settings(threads, precision)))
    except Exception as error:
        raise BackendError(f"{path}: OpenVINO {openvino_version()} refuses it: {reason(error)}") from error


def _settings(threads: int, precision: OvPrecision) -> dict[str, Any]:
    """Return OpenVINO's settings: one inference stream, no cache of OpenVINO's own, no pinning of threads to cores."""
    settings: dict[str, Any] = {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Threads that are pinned to cores would wait for the decoders that run on these cores.
        "ENABLE_CPU_PINNING": False,
        "CACHE_DIR": "",
    }
    if precision == "f32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    return settings


@cache
def _core() -> Any:
    """Return OpenVINO's core. One is enough for the process; making it takes milliseconds and loads the plugin."""
    return _openvino().Core()


def _openvino() -> Any:
    """Import OpenVINO without its telemetry.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    if "openvino" not in sys.modules:
        # OpenVINO reports conversions only, and gemel converts nothing with it. That it cannot report is better still.
        sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("the backend openvino", "openvino") from error
    return openvino


def reason(error: BaseException) -> str:
    """Return the part of OpenVINO's message that says what is wrong, without the lines that name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    return said[0] if said else first_line(error)

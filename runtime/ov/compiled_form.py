"""Form of a model in OpenVINO: compiled in one precision, with its memory and its run time relative to ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...bundles.manifest import ModelSpec, Stage
from ...bundles.reader import Bundle
from ...errors import BackendError
from ...memory_limit import limited_memory
from ..ort.baked import Baked, PrivateCopy
from ..ort.trial_run import noise_inputs
from .openvino_cpu import OvPrecision, OvProgram, compile_program, openvino_version, reason
from .openvino_times import measure_beside

__all__ = ["CompiledForm", "best_form"]

_WORTH = 0.95
"""Fraction of one form's run time below which another form (precision) of the model counts as faster.

Measured times are 5 % uncertain.
"""


class CompiledForm(NamedTuple):
    """Model that OpenVINO compiled in one precision."""

    precision: OvPrecision
    exported: Mapping[str, bytes]
    """Stage -> compiled program with its weights."""
    memory: Mapping[str, int]
    """Stage -> bytes of memory that the weights of the compiled program take."""
    copy: PrivateCopy | None
    """Run times of the compiled model and of the same model bound in ONNX Runtime; None if they were not measured."""

    @property
    def relative_time(self) -> float:
        """Time of a run in OpenVINO divided by that of a run bound in ONNX Runtime; 0 if they were not measured."""
        return 0.0 if self.copy is None else self.copy.packed_ms / max(self.copy.bound_ms, 1e-9)


def best_form(bundle: Bundle, name: str, precisions: Sequence[OvPrecision], beside: Baked | None) -> CompiledForm:
    """Compile a model in several precisions; return the first result, or a later one that is faster by more than 5 %.

    Args:
        bundle: an open bundle.
        name: name of the model.
        precisions: precisions of layers that are not int8, the preferred one first.
        beside: device cache of ONNX Runtime, whose run times the results are compared with; None to measure nothing.

    Raises:
        BackendError: OpenVINO refuses the model in every precision.
    """
    tried = [_tried(bundle, name, each, beside) for each in precisions]
    forms = [each for each in tried if isinstance(each, CompiledForm)]
    if not forms:
        raise next(each for each in tried if isinstance(each, BackendError))
    best = forms[0]
    for form in forms[1:]:
        if form.relative_time < _WORTH * best.relative_time:
            best = form
    return best


def _tried(bundle: Bundle, name: str, precision: OvPrecision, beside: Baked | None) -> CompiledForm | BackendError:
    """Compile a model in one precision and return the result, or return the error with which OpenVINO refused it."""
    stages = bundle.manifest.models[name].stages
    try:
        made = _compiled(bundle, bundle.manifest.models[name], precision)
    except BackendError as error:
        return error
    exported = {stage: program.export() for stage, program in made.items()}
    memory = {stage: _memory(bundle, stages[stage], data) for stage, data in exported.items()}
    copy = None if beside is None else measure_beside(beside, name, stages, made, memory)
    return CompiledForm(precision, exported, memory, copy)


def _memory(bundle: Bundle, stage: Stage, data: bytes) -> int:
    """Return the bytes of memory that the weights of a compiled program take.

    OpenVINO keeps the weights as they are in the program's file, and once more as its kernels want them: in the type
    of the bundle, except that float16 becomes float32.
    """
    content = bundle.manifest
    halves = {name for name, spec in content.tensors.items() if spec.dtype == "float16"}
    return len(data) + sum(content.bytes_of(each) * (2 if each in halves else 1) for each in set(stage.weights))


def _compiled(bundle: Bundle, model: ModelSpec, precision: OvPrecision) -> dict[str, OvProgram]:
    """Compile all stages of a model, and run each once: some programs compile and cannot be run.

    Returns:
        Stage -> compiled program.

    Raises:
        BackendError: OpenVINO refuses a stage, or fails to run it.
    """
    made: dict[str, OvProgram] = {}
    for name, stage in model.stages.items():
        path = bundle.file(stage.file)
        # A bundle may come from anywhere: a value that a graph computes may have any size.
        with limited_memory(model.bytes):
            made[name] = compile_program(path, stage, 1, precision)
            try:
                made[name].run(noise_inputs(stage))
            except Exception as error:
                raise BackendError(f"{path}: OpenVINO {openvino_version()} cannot run it: {reason(error)}") from error
    return made

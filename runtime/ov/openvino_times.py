"""CPU times of a model's compiled OpenVINO programs, compared with the same model bound in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ...bundles.manifest import Stage
from ..ort.baked import Baked, PrivateCopy
from ..ort.copy_times import cpu_times, open_bound
from ..ort.trial_run import noise_inputs
from .openvino_cpu import OvProgram

__all__ = ["measure_beside"]


def measure_beside(
    baked: Baked,
    model: str,
    stages: Mapping[str, Stage],
    programs: Mapping[str, OvProgram],
    memory: Mapping[str, int],
) -> PrivateCopy:
    """Measure a model in OpenVINO and bound in ONNX Runtime, alternately, on one image of noise and one thread.

    Args:
        baked: record of the device cache of ONNX Runtime.
        model: name of the model.
        stages: the model's stages, as the manifest has them.
        programs: stage -> the stage compiled by OpenVINO for one thread.
        memory: stage -> bytes of memory that the weights of its compiled program take.
    """
    bound_ms = openvino_ms = 0.0
    for name, stage in stages.items():
        inputs = noise_inputs(stage)
        # With one thread, OpenVINO too runs in the calling thread, whose CPU time is measured.
        times = cpu_times([partial(open_bound(baked, model, name).run, inputs), partial(programs[name].run, inputs)])
        bound_ms, openvino_ms = bound_ms + times[0], openvino_ms + times[1]
    return PrivateCopy(mode="openvino", copies=dict(memory), bound_ms=bound_ms, packed_ms=openvino_ms)

"""CPU times of runs on one thread: of any functions, and of an INT8 model with and without its private copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import thread_time

import numpy as np
import onnxruntime as ort

from ...bundles.manifest import Stage
from ...bundles.onnx_wire import tensor_array
from ...bundles.program import read_model
from ..timing import medians
from .baked import Baked, BakedStage, PrivateCopy
from .session import Bound, open_baked
from .trial_run import noise_inputs

__all__ = ["cpu_times", "measure_private_copy", "open_bound", "open_stage"]

_WARM_UP, _ROUNDS = 3, 15
"""Number of warm-up runs of each function that is timed, and maximum number of its timed runs."""
_ENOUGH_S = 1.0
"""Seconds after which timing stops, but not before every function was timed once."""


def cpu_times(runs: Sequence[Callable[[], object]]) -> list[float]:
    """Run functions alternately, and return for each the median of this thread's CPU time in milliseconds."""
    return medians(runs, thread_time, warm_up=_WARM_UP, rounds=_ROUNDS, enough_s=_ENOUGH_S)


def open_bound(baked: Baked, model: str, stage: str) -> Bound:
    """Open the program of a stage on one thread, bound to the stage's weights in the device cache's blob."""
    return open_stage(baked, baked.models[model][stage])


def open_stage(baked: Baked, made: BakedStage) -> Bound:
    """Open a program of a device cache on one thread, bound to its weights in the device cache's blob."""
    # An empty file cannot be mapped.
    blob = np.memmap(baked.blob, np.uint8, "r") if made.weights else np.zeros(0, np.uint8)
    weights = [ort.OrtValue.ortvalue_from_numpy(baked.weight(blob, weight)) for weight in made.weights]
    return Bound(open_baked(baked.program(made.program), 1, prepack=False, trial=True), weights)


def measure_private_copy(baked: Baked, model: str, stages: Mapping[str, Stage]) -> PrivateCopy:
    """Measure an INT8 model bound (float32 on shared weights) and packed (int8 on a private copy).

    The two forms run on one image of noise. Dynamic dimensions of the input are 1.

    Args:
        baked: record of a device cache that has the float32 and the int8 form of the model.
        model: name of the model.
        stages: the model's stages, as the manifest has them.
    """
    copies: dict[str, int] = {}
    bound_ms = packed_ms = 0.0
    for name, stage in stages.items():
        bound = open_bound(baked, model, name)
        packed = Bound(open_baked(baked.packed(model, name), 1, prepack=True, trial=True))
        inputs = noise_inputs(stage)
        times = cpu_times([partial(bound.run, inputs), partial(packed.run, inputs)])
        bound_ms, packed_ms = bound_ms + times[0], packed_ms + times[1]
        graph = read_model(baked.packed(model, name).read_bytes()).graph
        copies[name] = sum(tensor_array(tensor).nbytes for tensor in graph.initializer)
    return PrivateCopy(copies=copies, bound_ms=bound_ms, packed_ms=packed_ms)

"""Measurement of a model's CPU time in float32 and in int8, with the graph optimisations of the backend ort-cpu.

The int8 session holds a private copy of the weights, as the backend's int8 sessions do.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..bundles.onnx_wire import tensor_array
from ..bundles.program import read_model
from ..runtime.ort.copy_times import cpu_times
from ..runtime.ort.cpu_int8 import for_ort_int8
from ..runtime.ort.optimise import DISABLED_OPTIMIZERS
from ..runtime.ort.session import open_session, quiet

__all__ = ["cpu_latencies"]


def cpu_latencies(fp32: ir.Model, int8: ir.Model) -> tuple[float, float]:
    """Return the CPU time in milliseconds of a run of a model's float32 graph and of its int8 graph, on one image of
    noise and one thread."""
    port = fp32.graph.inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in port.shape or ()]
    image = np.random.default_rng(0).random(shape, np.float32)
    protos = [ir.to_proto(graph).SerializeToString() for graph in (fp32, int8)]
    protos[1] = for_ort_int8(read_model(protos[1]), tensor_array).SerializeToString()
    path, options = Path(str(fp32.graph.name)), quiet(threads=1)
    sessions = [open_session(path, options, proto=proto, disabled_optimizers=DISABLED_OPTIMIZERS) for proto in protos]
    before, after = cpu_times([partial(session.run, None, {str(port.name): image}) for session in sessions])
    return before, after

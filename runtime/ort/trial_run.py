"""Trial run of every baked program (optimised for this CPU), before a new device cache is accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...bundles.manifest import Stage
from ...bundles.reader import Bundle
from ...errors import BackendError, first_line
from ...memory_limit import limited_memory
from .baked import Baked
from .session import Bound, open_baked

__all__ = ["noise_inputs", "run_each_program"]


def run_each_program(bundle: Bundle, baked: Baked) -> None:
    """Open and run every program once, with the weights of one model that uses it.

    Optimised graphs are edited after ONNX Runtime wrote them. A mistake in the edits must be found here, and not at
    a camera's first frame.

    Raises:
        BackendError: a program cannot be opened or run; the message names its model and file.
    """
    blob = np.memmap(baked.blob, np.uint8, "r") if baked.blob.stat().st_size else np.zeros(0, np.uint8)
    seen: set[str] = set()
    for name, model in bundle.manifest.models.items():
        for stage_name, stage in model.stages.items():
            made = baked.models[name][stage_name]
            if made.program in seen:
                continue
            seen.add(made.program)
            weights = [ort.OrtValue.ortvalue_from_numpy(baked.weight(blob, weight)) for weight in made.weights]
            try:
                # A bundle may come from anywhere: a value that a graph computes may have any size.
                with limited_memory(len(blob)):
                    session = open_baked(baked.program(made.program), 1, prepack=False, trial=True)
                    Bound(session, weights).run(noise_inputs(stage))
            except Exception as error:
                raise BackendError(
                    f"model {name}: {stage.file} does not run once baked: {first_line(error)}"
                ) from error


def noise_inputs(stage: Stage) -> Mapping[str, NDArray[Any]]:
    """Return an array of noise between 0 and 1 for every input of a stage, by name; dynamic dimensions are 1."""
    random = np.random.default_rng(0)
    return {
        port.name: random.random([1 if isinstance(size, str) else size for size in port.shape]).astype(port.dtype)
        for port in stage.inputs
    }

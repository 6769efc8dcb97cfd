"""Measurement of a stem's run time, which a turn saves if the stem (first layers) already ran on the turn's frames."""

from __future__ import annotations

from time import perf_counter

from ...bundles.reader import Bundle
from ..backends import Backend
from ..ort.trial_run import noise_inputs
from .turn_times import median_ms

__all__ = ["measure_stem"]

_RUNS = 5
"""Number of timed runs of a stem."""


def measure_stem(bundle: Bundle, backend: Backend, model: str) -> float:
    """Return the median milliseconds of a run of a model's stem on one frame, with the model's weights in memory.

    Args:
        bundle: an open bundle.
        backend: backend that was opened for the bundle, with no model active.
        model: name of a model that the backend runs in parts.

    Raises:
        BackendError: the stem cannot be run.
    """
    spec = bundle.manifest.models[model].stem
    assert spec is not None  # the backend runs only such models in parts
    inputs = noise_inputs(spec.stem)
    backend.activate(model)
    try:
        # Not timed: the first run creates what the stem keeps from then on.
        backend.run(model, "stem", inputs)
        times = []
        for _ in range(_RUNS):
            began = perf_counter()
            backend.run(model, "stem", inputs)
            times.append(perf_counter() - began)
        return median_ms(times)
    finally:
        backend.release(model)

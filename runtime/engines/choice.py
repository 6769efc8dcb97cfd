"""Choose the mode of a program on this machine's device: build a bound and a refitted engine, and compare their times.

Refitting saves no memory: the engine's private copy adds to what the arena holds. So a refitted engine must be faster
by more than the error of the measurement. If several models share the program, a run may follow a run of another model,
and then needs a refit first, whose time counts too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundles.manifest import Stage
from ...bundles.program import with_constants
from ...bundles.reader import Bundle
from ...errors import BackendError, first_line
from ..device import Device, DeviceArray, Stream
from ..timing import medians
from .build import Built, build_engine
from .executables import EngineOpener
from .library import Library
from .record import ModeChoice
from .timings import Timings

__all__ = ["choose_mode", "pick"]

_Array = NDArray[Any]

_WORTH = 1.05
"""Ratio of a bound run's time to a refitted run's time above which a private copy is worth its memory."""
_ALIKE = 0.02
"""Maximum difference of two engines' outputs that counts as rounding, as a fraction of the largest output."""
_WARM_UP, _ROUNDS = 10, 30
"""Numbers of warm-up runs and of timed runs of each of two engines whose times are compared."""


def pick(
    bundle: Bundle,
    stage: Stage,
    proto: bytes,
    rows: Mapping[str, int],
    bound: Built,
    library: Library,
    device: Device,
    timings: Timings | None,
) -> tuple[ModeChoice, Built | None]:
    """Choose whether a program with weights runs bound or refitted, by timing an engine of each mode.

    Args:
        bundle: an open bundle.
        stage: stage of a model with this program. The refitted engine is built with the stage's weights.
        proto: serialised program.
        rows: see :func:`.build.build_engine`. The engines are timed with inputs of these sizes.
        bound: engine of the program with weights as inputs.
        library: TensorRT or TensorRT for RTX, which builds and runs the engines.
        device: this machine's device.
        timings: see :func:`.build.build_engine`.

    Returns:
        The mode with its times, and the refitted engine if the mode is ``refit``, otherwise None.
    """
    content = bundle.manifest
    users = [
        other
        for model in content.models.values()
        for other in model.stages.values()
        if other.program == stage.program and other.weights != stage.weights
    ]
    places = [content.tensors.get(weight) or bundle.tensor(weight) for weight in stage.weights]
    constant = with_constants(proto, content.blob, places)
    # With one set of weights only, the library may optimise the engine for their values.
    flags = ("STRIP_PLAN", "REFIT" if users else "REFIT_IDENTICAL")
    opener = EngineOpener(library, device, device.stream())
    try:
        refit = build_engine(library, constant, rows, blob=bundle.file(content.blob), flags=flags, timings=timings)
        # Measured with the weights of another model with this program, if there is one: that shows whether the engine
        # wrongly keeps weights of the first model.
        bound_ms, refit_ms, swap_ms = _measure(bundle, [stage, *users][-1], proto, rows, bound, refit, opener)
    except (BackendError, RuntimeError, TypeError, ValueError) as error:
        # The bound engine runs in any case.
        return ModeChoice(why=f"no refit engine: {first_line(error)}"), None
    finally:
        opener.close()
    choice = choose_mode(bound_ms, refit_ms, swap_ms, shared=bool(users))
    return choice, refit if choice.mode == "refit" else None


def choose_mode(bound_ms: float, refit_ms: float, swap_ms: float, *, shared: bool) -> ModeChoice:
    """Choose the mode of a program from measured times.

    >>> choose_mode(1.2, 1.0, 0.3, shared=False).mode, choose_mode(1.2, 1.0, 0.3, shared=True).mode
    ('refit', 'bound')

    Args:
        bound_ms: milliseconds of a run with weights as inputs.
        refit_ms: milliseconds of a run with weights as constants.
        swap_ms: milliseconds of copying another model's weights into the engine (a refit).
        shared: whether other models have the same program with other weights.
    """
    faster = bound_ms > _WORTH * (refit_ms + (swap_ms if shared else 0.0))
    times = {"bound_ms": bound_ms, "refit_ms": refit_ms, "swap_ms": swap_ms}
    return ModeChoice(mode="refit" if faster else "bound", why="", **{name: round(ms, 4) for name, ms in times.items()})


def _measure(
    bundle: Bundle,
    stage: Stage,
    proto: bytes,
    rows: Mapping[str, int],
    bound: Built,
    refit: Built,
    opener: EngineOpener,
) -> tuple[float, float, float]:
    """Return the milliseconds of a bound run, of a refitted run and of a refit, with the weights of a stage.

    Raises:
        BackendError: an engine cannot be run, or the outputs of the bound and the refitted engine differ.
    """
    one, other = opener.bound(bound.data, stage), opener.refitted(refit.data, stage, proto)
    if one is None or other is None:
        raise BackendError(opener.library.refusal(opener.library.logger().errors))
    random = np.random.default_rng(0)
    frames = [
        random.random([rows[port.name] if isinstance(size, str) else size for size in port.shape]).astype(port.dtype)
        for port in stage.inputs
    ]
    with _uploaded([*frames, *map(bundle.tensor, stage.weights)], opener.device, opener.stream) as arrays:
        inputs = {port.name: array for port, array in zip(stage.inputs, arrays, strict=False)}
        weights = arrays[len(inputs) :]
        one.bind(stage.weights, weights)
        other.bind(stage.weights, weights)
        _check_alike(one.run(inputs), other.run(inputs))
        times = partial(medians, clock=perf_counter, warm_up=_WARM_UP, rounds=_ROUNDS)
        bound_ms, refit_ms = times([lambda: one.run(inputs), lambda: other.run(inputs)])
        (swap_ms,) = times([lambda: other.refit(weights)])
    return bound_ms, refit_ms, swap_ms


def _check_alike(bound: Mapping[str, _Array], refit: Mapping[str, _Array]) -> None:
    """Check that the outputs of a bound and a refitted engine are the same, except for rounding.

    The check exists because TensorRT 11.3 drops biases from engines that can be refitted.

    Raises:
        BackendError: outputs differ by more than rounding.
    """
    for name, expected in bound.items():
        found = refit[name].astype(np.float64)
        most = np.abs(expected, dtype=np.float64).max(initial=0.0)
        difference = np.abs(found - expected).max(initial=0.0)
        # Negated, so that a difference of NaN fails.
        if not difference <= _ALIKE * most:
            raise BackendError(
                f"its outputs differ from the bound engine's: {name} by {difference:.3g} of at most {most:.3g}"
            )


@contextmanager
def _uploaded(arrays: Sequence[_Array], device: Device, stream: Stream) -> Iterator[list[DeviceArray]]:
    """Upload arrays to the device, yield them, and free their memory at the end of the ``with`` block."""
    places: list[DeviceArray] = []
    try:
        for array in arrays:
            places.append(DeviceArray(device.allocate(max(array.nbytes, 1)), array.dtype, array.shape))
            device.upload(places[-1].address, array, stream)
        stream.synchronize()
        yield places
    finally:
        for place in places:
            device.free(place.address)

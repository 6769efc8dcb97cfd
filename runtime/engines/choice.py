"""The mode of a program on the device that is here: both engines are built, run and timed.

Refitting saves no memory: the engine's copy comes on top of what the arena holds. So it has to be faster by more than
the measuring is wrong, and where models share the program, every run may follow one of another model's, and a refit.
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
"""How many times as long a run with bound weights must take, for a copy to be worth its memory."""
_ALIKE = 0.02
"""Of the largest answer, by how much answers may differ: kernels round differently."""
_WARM_UP, _ROUNDS = 10, 30
"""Runs of each engine."""


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
    """Choose a program's mode.

    Args:
        bundle: an open bundle.
        stage: with weights, of a model with this program; the engine is built with them.
        proto: the program.
        rows: see :func:`.build.build`; it is timed with as many.
        bound: its engine with weights as inputs.
        library: that builds and runs.
        device: that is here.
        timings: see :func:`.build.build`.

    Returns:
        The mode, and the engine that is refitted where that was chosen.
    """
    content = bundle.manifest
    users = [
        other
        for model in content.models.values()
        for other in model.stages.values()
        if other.program == stage.program and other.weights != stage.weights
    ]
    constant = with_constants(proto, content.blob, [content.tensors[tensor] for tensor in stage.weights])
    # One that only ever gets the values that it was built with may be optimised for them.
    flags = ("STRIP_PLAN", "REFIT" if users else "REFIT_IDENTICAL")
    opener = EngineOpener(library, device, device.stream())
    try:
        refit = build_engine(library, constant, rows, blob=bundle.file(content.blob), flags=flags, timings=timings)
        # With weights of another model where there is one: nothing of those that it was built with may be left in it.
        bound_ms, refit_ms, swap_ms = _measure(bundle, [stage, *users][-1], proto, rows, bound, refit, opener)
    except (BackendError, RuntimeError, TypeError, ValueError) as error:
        # Whatever it is, with bound weights the program runs.
        return ModeChoice(why=f"no refit engine: {first_line(error)}"), None
    finally:
        opener.close()
    choice = choose_mode(bound_ms, refit_ms, swap_ms, shared=bool(users))
    return choice, refit if choice.mode == "refit" else None


def choose_mode(bound_ms: float, refit_ms: float, swap_ms: float, *, shared: bool) -> ModeChoice:
    """The mode, from what was measured.

    >>> choose(1.2, 1.0, 0.3, shared=False).mode, choose(1.2, 1.0, 0.3, shared=True).mode
    ('refit', 'bound')

    Args:
        bound_ms: of a run with weights as inputs.
        refit_ms: of a run with weights as constants.
        swap_ms: of a refit.
        shared: whether other models have the program, with other weights.
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
    """Milliseconds of a run bound, of one refitted, and of a refit, with weights of the stage.

    Raises:
        BackendError: they cannot be run, or answer differently.
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
    """
    Raises:
        BackendError: answers differ by more than rounding. TensorRT 11.3 drops biases where engines can be refitted.
    """
    for name, expected in bound.items():
        found = refit[name].astype(np.float64)
        most = np.abs(expected, dtype=np.float64).max(initial=0.0)
        difference = np.abs(found - expected).max(initial=0.0)
        # Written so that what is no number is not alike.
        if not difference <= _ALIKE * most:
            raise BackendError(f"its answers differ: {name} by {difference:.3g}, where bound ones reach {most:.3g}")


@contextmanager
def _uploaded(arrays: Sequence[_Array], device: Device, stream: Stream) -> Iterator[list[DeviceArray]]:
    """Arrays on the device, for a while."""
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

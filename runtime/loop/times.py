"""Times of a bundle on this device: how long its segments take to load and its models to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import count
from statistics import median
from threading import Event
from time import perf_counter

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...bundles.reader import Bundle
from ...errors import BackendError, GemelError, first_line
from ...frames.frame import Frame, Image
from ..backends import Backend
from .inference import Inference

__all__ = ["BATCHES", "ROUNDS", "MeasureProgress", "Times", "measure_times"]

BATCHES = (1, 2, 4, 8)
"""Frames of a turn that are measured."""
ROUNDS = 5
"""Times that every model takes these turns."""

_LOADS = 15
"""Of a segment."""
_LONG_S = 1.0
"""No more frames are tried after a turn that is longer than this, and than the SLA."""
_ENOUGH_S = 3.0
"""Of a model's turns, or a segment's loads; after that they are not repeated."""

MeasureProgress = Callable[[str], None]


class Times(BaseModel):
    """In milliseconds."""

    model_config = ConfigDict(frozen=True)
    load: dict[str, float]
    """By segment."""
    run: dict[str, dict[int, float]]
    """By model and number of frames."""


def measure_times(bundle: Bundle, backend: Backend, progress: MeasureProgress = lambda what: None) -> Times:
    """Measure every segment and every model that has a query.

    Loads: a segment alone, with nothing else in memory, until ``prefetch`` has it there. The first load does not
    count, because where the segment was before it is chance; after that it comes from where an eviction leaves it:
    from the page cache, or from disk where the backend was opened ``cold``.

    Runs: turns of 1, 2, 4 and 8 different frames, one after the other as the runner processes them, with all weights
    of the model in memory: preprocessing, run and decoding. A turn longer than a second, and than the SLA, is the
    longest that is measured. The frames are artificial and as large as the model's input: those of a camera take
    longer to resize, and may have more in them to decode. Models alternate, so that when the machine is busy with
    something else, that is not one model's bad luck.

    All times are medians: of 15 loads and of :data:`ROUNDS` turns, of fewer where those take three seconds, and of
    one at least.

    Args:
        bundle: an open bundle.
        backend: opened for it, with no model active. Its budget may be as small as one model's; its counters
            go on counting.
        progress: told what comes next: each segment once, each model :data:`ROUNDS` times.

    Raises:
        BackendError: a model cannot be run, or holds a segment.
    """
    loads: dict[str, float] = {}
    for segment in backend.segments:
        progress(f"segment {segment}")
        loads[segment] = _load_ms(backend, segment)
    turns: dict[str, _Turns] = {}
    infer, indices, pictures = Inference(bundle, backend), count(), cache(_pictures)
    for name, query in bundle.manifest.queries.items():
        # A model's other queries differ in what they report, not in what is run.
        if query.model not in turns:
            size = bundle.manifest.models[query.model].input.size
            turns[query.model] = _Turns(partial(infer, name), query.feed, pictures(size), indices)
    for _ in range(ROUNDS):
        for model, each in turns.items():
            progress(f"model {model}")
            try:
                each.take(max(_LONG_S, bundle.manifest.sla_ms / 1e3))
            except GemelError:
                raise
            except Exception as error:
                raise BackendError(f"model {model}: cannot be measured: {first_line(error)}") from error
    return Times(load=loads, run={model: each.run_ms for model, each in turns.items()})


def _load_ms(backend: Backend, segment: str) -> float:
    times: list[float] = []
    # One more than counts.
    while len(times) <= 1 or (len(times) <= _LOADS and sum(times[1:]) < _ENOUGH_S):
        backend.evict()
        if backend.loaded([segment]):
            raise BackendError(f"segment {segment}: cannot be measured while a model holds it")
        there = Event()
        began = perf_counter()
        backend.prefetch([segment], done=there.set)
        there.wait()
        times.append(perf_counter() - began)
    return _median_ms(times[1:])


class _Turns:
    """Turns of a model, and how long they took."""

    def __init__(
        self, infer: Callable[[Frame], object], feed: str, pictures: Sequence[Image], indices: Iterator[int]
    ) -> None:
        self._infer, self._feed, self._pictures, self._indices = infer, feed, pictures, indices
        self._times: dict[int, list[float]] = {}

    def take(self, long: float) -> None:
        """A turn of each size up to one that takes longer than ``long`` seconds, unless there were enough."""
        if sum(map(sum, self._times.values())) >= _ENOUGH_S:
            return
        # Not counted: brings the weights, and the first one of all makes what a model keeps from then on.
        self._turn(1)
        for batch in BATCHES:
            times = self._times.setdefault(batch, [])
            times.append(self._turn(batch))
            if times[-1] > long:
                break

    @property
    def run_ms(self) -> dict[int, float]:
        return {batch: _median_ms(times) for batch, times in self._times.items()}

    def _turn(self, batch: int) -> float:
        # New indices: a frame that was seen before would not be prepared again.
        frames = [Frame(self._feed, next(self._indices), picture, 0.0, 0.0) for picture in self._pictures[:batch]]
        began = perf_counter()
        for frame in frames:
            self._infer(frame)
        return perf_counter() - began


def _median_ms(seconds: Sequence[float]) -> float:
    # Four digits are more than a measurement is worth.
    return float(f"{median(seconds) * 1e3:.4g}")


def _pictures(size: tuple[int, int]) -> list[Image]:
    """As many ``[H, W, 3]`` as the largest batch has: one texture with edges at all scales, moving."""
    y, x = np.indices(size)
    textures = ((x + 8 * shift) ^ y for shift in range(max(BATCHES)))
    return [np.stack([texture, 2 * texture, 3 * texture], 2).astype(np.uint8) for texture in textures]

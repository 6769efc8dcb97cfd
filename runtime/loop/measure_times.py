"""Measuring a bundle on this device: times of loading its segments, and of running turns of its models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
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

__all__ = ["BATCHES", "ROUNDS", "MeasureProgress", "Times", "measure_runs", "measure_times"]

BATCHES = (1, 2, 4, 8)
"""Numbers of frames in the turns that are measured."""
ROUNDS = 5
"""Maximum number of measured turns of each model, for each number of frames."""

_LOADS = 15
"""Maximum number of timed loads of each segment."""
_LONG_S = 1.0
"""Duration of a turn in seconds (or the SLA, if longer) above which turns with more frames are not measured."""
_ENOUGH_S = 3.0
"""Total seconds of one model's turns, or of one segment's loads, after which the measurement is not repeated."""

MeasureProgress = Callable[[str], None]
"""Function called with a description of what is measured next."""


class Times(BaseModel):
    """Measured times of a bundle on one device, in milliseconds."""

    model_config = ConfigDict(frozen=True)
    load: dict[str, float]
    """Segment -> median milliseconds of a load."""
    run: dict[str, dict[int, float]]
    """Model -> number of frames in a turn -> median milliseconds of the turn."""


def measure_times(bundle: Bundle, backend: Backend, progress: MeasureProgress = lambda what: None) -> Times:
    """Measure the load times of all segments, and the run times of all models that have a query.

    Loads: one segment at a time, with no other segment in memory, from the call of ``prefetch`` until the segment is in
    memory. The first load does not count, because it is unknown where the segment was before. Later loads read from
    where an eviction leaves a segment: the page cache, or the disk if the backend was opened ``cold``.

    Runs: turns of 1, 2, 4 and 8 different frames, one after the other as the runner processes them, with all weights
    of the model in memory. Preprocessing, run and decoding are timed. A model's longest measured turn is the first
    that takes longer than both a second and the SLA. The frames are artificial and as large as the model's input:
    frames of a camera take longer to resize, and may show more objects to decode. Models alternate, so that other work
    on the machine does not slow down one model alone.

    All times are medians: of 15 loads, and of :data:`ROUNDS` turns of each size. Fewer are measured if they take three
    seconds together, but at least one.

    Args:
        bundle: an open bundle.
        backend: backend that was opened for the bundle, with no model active. Its budget may have room for one model
            only. Its statistics count the measured loads, too.
        progress: function called with a description of what is measured next: once for each segment, and :data:`ROUNDS`
            times for each model.

    Raises:
        BackendError: a model cannot be run, or a model that is active holds a segment.
    """
    loads: dict[str, float] = {}
    for segment in backend.segments:
        progress(f"segment {segment}")
        loads[segment] = _load_ms(backend, segment)
    models = {query.model for query in bundle.manifest.queries.values()}
    return Times(load=loads, run=measure_runs(bundle, backend, models, ROUNDS, progress))


def measure_runs(
    bundle: Bundle,
    backend: Backend,
    models: Collection[str],
    rounds: int = 1,
    progress: MeasureProgress = lambda what: None,
) -> dict[str, dict[int, float]]:
    """Measure the run times of some models, as :func:`measure_times` does, and evict their weights afterwards.

    Args:
        bundle: an open bundle.
        backend: backend that was opened for the bundle, with no model active.
        models: names of models, each of which has a query.
        rounds: maximum number of measured turns of each model, for each number of frames.
        progress: function called with a description of what is measured next.

    Returns:
        Model -> number of frames in a turn -> median milliseconds of the turn.

    Raises:
        BackendError: a model cannot be run.
    """
    content = bundle.manifest
    turns: dict[str, _Turns] = {}
    infer, indices, pictures = Inference(bundle, backend), count(), cache(_pictures)
    for name, query in content.queries.items():
        # A model's other queries differ in what they report, not in what is run.
        if query.model in models and query.model not in turns:
            size = content.models[query.model].input.size
            turns[query.model] = _Turns(partial(infer, name), query.feed, pictures(size), indices)
    for _ in range(rounds):
        for model, each in turns.items():
            progress(f"model {model}")
            try:
                each.take(max(_LONG_S, *(content.sla_of(query) / 1e3 for query in content.queries)))
            except GemelError:
                raise
            except Exception as error:
                raise BackendError(f"model {model}: cannot be measured: {first_line(error)}") from error
    if turns:
        backend.evict()
    return {model: each.run_ms for model, each in turns.items()}


def _load_ms(backend: Backend, segment: str) -> float:
    """Measure loads of one segment, and return their median time in milliseconds."""
    times: list[float] = []
    # The first load does not count, hence one more load of each segment.
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
    """Measured turns of one model, and the seconds that the turns took.

    Args:
        infer: function that runs the model, called with a frame.
        feed: name of the feed that frames pretend to come from.
        pictures: different images; a turn on n frames takes the first n images.
        indices: iterator that gives every frame an index of its own.
    """

    def __init__(
        self, infer: Callable[[Frame], object], feed: str, pictures: Sequence[Image], indices: Iterator[int]
    ) -> None:
        self._infer, self._feed, self._pictures, self._indices = infer, feed, pictures, indices
        self._times: dict[int, list[float]] = {}
        """Number of frames in a turn -> seconds of each turn that was measured."""

    def take(self, long: float) -> None:
        """Measure a turn for each number of frames, unless the model's turns took long enough so far.

        Stop after a turn that takes longer than ``long`` seconds.
        """
        if sum(map(sum, self._times.values())) >= _ENOUGH_S:
            return
        # Not timed: this turn loads the weights, and the very first also creates what the model keeps from then on.
        self._turn(1)
        for frames in BATCHES:
            times = self._times.setdefault(frames, [])
            times.append(self._turn(frames))
            if times[-1] > long:
                break

    @property
    def run_ms(self) -> dict[int, float]:
        """Number of frames in a turn -> median milliseconds of the turn."""
        return {frames: _median_ms(times) for frames, times in self._times.items()}

    def _turn(self, count: int) -> float:
        """Run the model on ``count`` frames, and return the seconds that the runs took."""
        # New indices: a frame with a known index would not be prepared again.
        frames = [Frame(self._feed, next(self._indices), picture, 0.0, 0.0) for picture in self._pictures[:count]]
        began = perf_counter()
        for frame in frames:
            self._infer(frame)
        return perf_counter() - began


def _median_ms(seconds: Sequence[float]) -> float:
    # Measured times are less accurate than four digits.
    return float(f"{median(seconds) * 1e3:.4g}")


def _pictures(size: tuple[int, int]) -> list[Image]:
    """Return an image ``[H, W, 3]`` for each frame of the longest turn: a texture with many edges, which moves."""
    y, x = np.indices(size)
    textures = ((x + 8 * shift) ^ y for shift in range(max(BATCHES)))
    return [np.stack([texture, 2 * texture, 3 * texture], 2).astype(np.uint8) for texture in textures]

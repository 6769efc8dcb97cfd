"""Measuring a bundle on this device: times of loading its segments, and of running turns of its models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from functools import cache
from itertools import count
from threading import Event
from time import perf_counter

from pydantic import BaseModel, ConfigDict

from ...bundles.reader import Bundle
from ...errors import BackendError, GemelError, first_line
from ..backends import Backend
from ..backends.share_stems import shared_stems
from .batches import BATCHES
from .inference import Inference
from .stem_times import measure_stem
from .turn_times import ENOUGH_S, TurnTimes, median_ms, pictures_of

__all__ = ["ROUNDS", "MeasureProgress", "Times", "measure_runs", "measure_times"]

ROUNDS = 5
"""Maximum number of measured turns of each model, for each number of frames."""

_LOADS = 15
"""Maximum number of timed loads of each segment."""
_LONG_S = 1.0
"""Duration of a turn in seconds (or the SLA, if longer) above which turns with more frames are not measured."""

MeasureProgress = Callable[[str], None]
"""Function called with a description of what is measured next."""


class Times(BaseModel):
    """Measured times of a bundle on one device, in milliseconds."""

    model_config = ConfigDict(frozen=True)
    load: dict[str, float]
    """Segment -> median milliseconds of a load."""
    run: dict[str, dict[int, float]]
    """Model -> number of frames in a turn -> median milliseconds of the turn, as one batch if that is faster."""
    as_batch: dict[str, tuple[int, ...]] = {}
    """Model -> numbers of frames that are faster as one batch than one by one; models without such are left out."""
    stem: dict[str, float] = {}
    """Model -> median milliseconds of a run of its stem on one frame; models that share no stem are left out."""


def measure_times(bundle: Bundle, backend: Backend, progress: MeasureProgress = lambda what: None) -> Times:
    """Measure the load times of all segments, and the run times of all models that have a query.

    Loads: one segment at a time, with no other segment in memory but those that it is computed from, from the call of
    ``prefetch`` until the segment is in memory. The first load does not count, because it is unknown where the segment
    was before. Later loads read from where an eviction leaves a segment: the page cache, or the disk if the backend was
    opened ``cold``.

    Runs: turns of 1, 2, 4 and 8 different frames, with all weights of the model in memory. Preprocessing, run and
    decoding are timed. A model's longest measured turn is the first that takes longer than both a second and the SLA.
    The frames are artificial and as large as the model's input: frames of a camera take longer to resize, and may show
    more objects to decode. Models alternate, so that other work on the machine does not slow down one model alone.

    Batches: if the model and the backend can run several frames at once, a turn is also measured as one batch, beside
    the same turn with frames one by one. A batch is used if it saves 3 % of the time, and if its outputs are
    those of single frames but for rounding. If the smallest and the largest batch save nothing, others are not tried.
    A model with the same programs as one before it is not measured as batches: what was found holds for both.

    Stems: models of which a part runs once for several queries are timed whole, and then that part alone.

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
    return measure_runs(bundle, backend, models, ROUNDS, progress).model_copy(update={"load": loads})


def measure_runs(
    bundle: Bundle,
    backend: Backend,
    models: Collection[str],
    rounds: int = 1,
    progress: MeasureProgress = lambda what: None,
) -> Times:
    """Measure the run times of some models, as :func:`measure_times` does, and evict their weights afterwards.

    Args:
        bundle: an open bundle.
        backend: backend that was opened for the bundle, with no model active.
        models: names of models, each of which has a query.
        rounds: maximum number of measured turns of each model, for each number of frames.
        progress: function called with a description of what is measured next.

    Returns:
        Times without those of loads.

    Raises:
        BackendError: a model cannot be run.
    """
    content, turns = bundle.manifest, dict[str, TurnTimes]()
    singly = Inference(bundle, backend)
    together = Inference(bundle, backend, batches=dict.fromkeys(models, BATCHES[1:]))
    indices, pictures, alike = count(), cache(pictures_of), dict[Hashable, str]()
    for name, query in content.queries.items():
        # A model's other queries differ in what they report, not in what is run.
        model = query.model
        if model in models and model not in turns:
            first = alike.setdefault(_programs(bundle, backend, model), model)
            takes_batches = content.models[model].stages["main"].takes_batches and first == model
            turns[model] = TurnTimes(
                singly,
                together,
                name,
                model,
                query.feed,
                pictures(content.models[model].input.size),
                indices,
                backend.batch_limit(model) if takes_batches else 1,
            )
    for _ in range(rounds):
        for model, each in turns.items():
            progress(f"model {model}")
            try:
                each.take(max(_LONG_S, *(content.sla_of(query) / 1e3 for query in content.queries)))
            except GemelError:
                raise
            except Exception as error:
                raise BackendError(f"model {model}: cannot be measured: {first_line(error)}") from error
    shared = {content.queries[name].model for name in shared_stems(content, backend.stems, content.queries)}
    stems = {model: measure_stem(bundle, backend, model) for model in turns if model in shared}
    if turns:
        backend.evict()
    gains = {model: turns[alike[_programs(bundle, backend, model)]].gains for model in turns}
    return Times(
        load={},
        run={model: each.run_ms(gains[model]) for model, each in turns.items()},
        as_batch={model: tuple(found) for model, found in gains.items() if found},
        stem=stems,
    )


def _programs(bundle: Bundle, backend: Backend, model: str) -> Hashable:
    """Return a key that is equal for models that run the same programs on inputs of the same size, in the same way."""
    spec = bundle.manifest.models[model]
    programs = tuple((name, stage.program) for name, stage in spec.stages.items())
    # A model without segments has a private copy of its weights, and may run on other kernels.
    return programs, spec.input.size, spec.precision, bool(backend.segments_of(model))


def _load_ms(backend: Backend, segment: str) -> float:
    """Measure loads of one segment, and return their median time in milliseconds."""
    times: list[float] = []
    # The first load does not count, hence one more load of each segment.
    while len(times) <= 1 or (len(times) <= _LOADS and sum(times[1:]) < ENOUGH_S):
        backend.evict()
        if backend.loaded([segment]):
            raise BackendError(f"segment {segment}: cannot be measured while a model holds it")
        _load(backend, backend.sources.get(segment, ()))
        times.append(_load(backend, [segment]))
    return median_ms(times[1:])


def _load(backend: Backend, segments: Sequence[str]) -> float:
    """Load segments that are not in memory, and return the seconds that this took."""
    there = Event()
    began = perf_counter()
    if segments:
        backend.prefetch(segments, done=there.set)
        there.wait()
    return perf_counter() - began

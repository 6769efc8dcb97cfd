"""Run of a bundle on its feeds, from opening the backend to the summary: what ``gemel-run`` does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event

from ..bundles.known_variables import known_variables
from ..bundles.output_specs import OutputSpec
from ..bundles.reader import Bundle
from ..errors import BackendError, InputError
from .backends import Backend, open_backend
from .loop import pipeline
from .loop.device_profile import profile_of
from .loop.inference import Inference
from .loop.open_feeds import FeedOptions, open_feeds
from .loop.plan_input import Swapping
from .loop.summary import FeedStats, MemoryUse, QueryStats, RunStats, Summary, SwapStats
from .loop.summary_file import SummaryFile
from .memory.arena import WARM, Loading
from .planning.planner import POLICIES
from .sinks import LiveTable, RunInfo, Sink, open_outputs
from .sinks.run_outputs import outputs_of_run
from .trace import Trace, Watch, unwatched

__all__ = ["RunOptions", "run_bundle"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """Options of a run. The bundle's own settings apply where an option is left out."""

    backend: str | None = None
    """Name of the backend that runs the bundle."""
    memory: str | int | None = None
    """Memory setting that gives the budget for weights: bytes, ``"64MiB"``, ``"50%"``, ``"min"`` or ``"all"``."""
    policy: str = "gemel"
    """Name of the policy by which a run is planned if not all weights fit, in :data:`.planning.planner.POLICIES`."""
    loading: Loading = WARM
    """Settings of how weights are loaded: from the page cache or the disk, at full speed or slower."""
    frames: int | None = None
    """Number of frames of each feed after which the run ends; no limit if None."""
    duration: float | None = None
    """Seconds after which the run ends; no limit if None."""
    offline: bool = False
    """Whether every query processes every frame, as fast as models run. Recordings then loop only if a limit is set."""
    threads: int | None = None
    """Maximum number of threads that one run of a model may use; one less than the number of cores if None."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Feed -> source to use instead of the source that the bundle states."""
    variables: Collection[str] = ()
    """Environment variables that the bundle's sources and outputs may use (``${VAR}``), besides those that begin with
    ``GEMEL_``, and besides all of a bundle that the user compiled on this machine."""
    outputs: Sequence[OutputSpec] | None = None
    """Outputs that replace those of the bundle; the bundle's if None."""
    results: Path | None = None
    """File that results are appended to, as JSON lines; ``-`` for the standard output; not written if None."""
    video: Path | None = None
    """Folder that annotated videos are written to; not written if None."""
    trace: Path | None = None
    """File that a Chrome trace is written to; not written if None."""
    summary: Path | None = None
    """File that summary.json is written to, every minute and at the end; not written if None."""
    live_table: bool = False
    """Whether to show a table on the terminal that is updated during the run."""


def run_bundle(
    bundle: Bundle,
    options: RunOptions,
    *,
    sinks: Sequence[Sink] = (),
    stop: Event | None = None,
    progress: Callable[[str], None] = lambda model: None,
    profiling: Callable[[str], None] = lambda what: None,
) -> Summary:
    """Run every query of a bundle until its feeds end, a limit is reached or ``stop`` is set.

    Queries of a feed that cannot be opened get no frames, and the summary says why; all other queries run. If not all
    weights fit into the budget, the run follows a plan. A plan needs the times of loads and runs, which are measured if
    the device cache has none.

    Args:
        bundle: an open bundle.
        options: settings and limits of the run, and the files that the run writes.
        sinks: receivers of results, in addition to the outputs; closed when the run ends.
        stop: event that ends the run early when it is set.
        progress: function called with the name of each model that is prepared for the device.
        profiling: function called with a description of what is measured next, if times must be measured.

    Raises:
        FeedError: no feed can be opened, or ``options.sources`` names a feed that does not exist.
        InputError: a limit or the memory setting is not possible.
        BackendError: the device cannot run the bundle.
    """
    manifest = bundle.manifest
    feed_of = {name: query.feed for name, query in manifest.queries.items()}
    trace = None if options.trace is None else Trace()
    variables = {*options.variables, *known_variables(bundle)}
    # An endless recording would never let an offline run end.
    endless = not options.offline or options.frames is not None or options.duration is not None
    feeds, broken = open_feeds(
        manifest.feeds,
        set(feed_of.values()),
        FeedOptions(options.sources, variables, endless),
        lambda name: _watch(trace, f"decode {name}"),
    )
    queries = {name: feed for name, feed in feed_of.items() if feed in feeds}
    with open_backend(
        bundle,
        options.backend,
        memory=options.memory,
        threads=options.threads,
        loading=replace(options.loading, watch=_watch(trace, "load")),
        progress=progress,
    ) as backend:
        swapping = _swapping(bundle, backend, options, queries, profiling)
        before = replace(backend.stats)
        _warm(bundle, backend, queries)
        infer = Inference(bundle, backend, None if swapping is None else swapping.depths(queries))
        # Outputs are opened last: only the pipeline closes them, so nothing may fail before the pipeline begins.
        table = [LiveTable(queries, feeds=feeds)] if options.live_table else []
        specs = outputs_of_run(
            manifest.outputs, options.outputs, allowed=variables, results=options.results, video=options.video
        )
        outputs = open_outputs(specs, queries, RunInfo(), [*table, *sinks], patient=options.offline)
        file = SummaryFile(options.summary)

        def summarise(stats: RunStats) -> Summary:
            """Return the summary of the run up to now."""
            arena = backend.stats
            blocked_ms = (arena.blocked_s - before.blocked_s) * 1e3 + stats.blocked_ms
            return Summary(
                _with_broken(stats, broken, feed_of),
                backend.name,
                MemoryUse(backend.budget, arena.peak),
                SwapStats(arena.loads - before.loads, arena.loaded - before.loaded, blocked_ms),
                options.policy,
                outputs.info.run,
                {name: counts.to_json() for name, counts in outputs.counts().items()},
                stopped=stop is not None and stop.is_set(),
            )

        so_far: list[Callable[[], RunStats]] = []

        def begin(stats: Callable[[], RunStats]) -> None:
            """Start what shows the run while it goes on."""
            so_far.append(stats)
            file.start(lambda: summarise(stats()))

        try:
            stats = pipeline.run_pipeline(
                queries,
                feeds,
                infer,
                [outputs],
                live=not options.offline,
                frames=options.frames,
                duration=options.duration,
                stop=stop,
                swapping=swapping,
                trace=trace,
                started=begin,
            )
        except BaseException as error:
            if so_far:
                file.finish(summarise(so_far[0]()), error)
            raise
        _write_trace(trace, options.trace)
        summary = summarise(stats)
        file.finish(summary)
        return replace(summary, unwritten=file.error)


def _swapping(
    bundle: Bundle, backend: Backend, options: RunOptions, queries: Collection[str], profiling: Callable[[str], None]
) -> Swapping | None:
    """Return the input of the run's plans; None if all weights fit into the budget, or times cannot be measured."""
    if sum(backend.segments.values()) <= backend.room:
        return None
    try:
        profile = profile_of(bundle, backend, progress=profiling)
    except BackendError as error:
        _log.warning("nothing is planned, queries take turns: %s", error)
        return None
    backend.evict()
    used = {name: query for name, query in profile.queries.items() if name in queries}
    profile = profile.model_copy(update={"queries": used})
    for query in profile.late():
        run_ms = profile.run_ms(query, 1)
        _log.warning("query %s: a run takes %.0f ms, longer than the SLA of %g ms", query, run_ms, profile.sla_ms)
    return Swapping(profile, backend.room, backend, POLICIES[options.policy])


def _warm(bundle: Bundle, backend: Backend, queries: Collection[str]) -> None:
    """Activate every model once: the first activation opens a model's programs, for which no camera should wait."""
    for model in dict.fromkeys(bundle.manifest.queries[query].model for query in queries):
        # A model that cannot be used fails again when its queries run, and is reported then.
        with contextlib.suppress(BackendError):
            backend.activate(model)
            backend.release(model)
    if sum(backend.segments.values()) > backend.room:
        backend.evict()


def _watch(trace: Trace | None, lane: str) -> Watch:
    """Return a watch that adds spans (timed intervals) to a lane of the trace, or ignores them if there is no trace."""
    return unwatched if trace is None else partial(trace.span, lane)


def _write_trace(trace: Trace | None, path: Path | None) -> None:
    """Write the trace. A failure is logged and not raised, so that the summary of the run is not lost."""
    if trace is not None and path is not None:
        try:
            trace.write(path)
        except InputError as error:
            _log.warning("%s", error)


def _with_broken(stats: RunStats, broken: Mapping[str, str], feed_of: Mapping[str, str]) -> RunStats:
    """Return statistics that include the feeds that could not be opened, and their queries, each with the reason."""
    idle = {query: QueryStats(feed, 0, 0, last_error=broken[feed]) for query, feed in feed_of.items() if feed in broken}
    feeds = {name: FeedStats(0, error=reason, state="failed") for name, reason in broken.items()}
    queries = {query: idle.get(query) or stats.queries[query] for query in feed_of}
    return replace(stats, queries=queries, feeds={**stats.feeds, **feeds})

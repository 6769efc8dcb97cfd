"""Running a bundle on its feeds, from opening the backend to the summary: what ``gemel-run`` does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event

from ..bundles.manifest import FeedSpec, feeds_from
from ..bundles.reader import Bundle
from ..errors import BackendError, FeedError, InputError
from ..frames.source import resolve
from .backends import Backend, open_backend
from .feeds import Feed
from .loop import pipeline
from .loop.device_profile import profile_of
from .loop.inference import Inference
from .loop.plan_input import Swapping
from .loop.summary import FeedStats, MemoryUse, QueryStats, RunStats, Summary, SwapStats
from .memory.arena import WARM, Loading
from .planning.planner import POLICIES
from .sinks import LiveTable, ResultsSink, Sink, VideoSink
from .trace import Trace, Watch, unwatched

__all__ = ["RunOptions", "run_bundle"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """Options of a run. The bundle's own settings apply where an option is left out."""

    backend: str | None = None
    """Name of the backend."""
    memory: str | int | None = None
    """Budget for weights: bytes, ``"64MiB"``, ``"50%"``, ``"min"`` or ``"all"``."""
    policy: str = "gemel"
    """Name of the policy of plans when not all weights fit; one of :data:`.planning.planner.POLICIES`."""
    loading: Loading = WARM
    """Settings of loads: from the page cache or the disk, at full speed or slower."""
    frames: int | None = None
    """Frames of each feed after which the run ends."""
    duration: float | None = None
    """Seconds after which the run ends."""
    offline: bool = False
    """Every query processes every frame, as fast as models run. Recordings loop only if the run has a limit."""
    threads: int | None = None
    """Threads that one run of a model may use; one less than the cores when left out."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Feed -> source that replaces the bundle's."""
    results: Path | None = None
    """File that results are written to, as JSON lines."""
    video: Path | None = None
    """Folder that annotated videos are written to."""
    trace: Path | None = None
    """File that a Chrome trace is written to."""
    live_table: bool = False
    """Show a table on the terminal while the run goes on."""


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

    Queries of a feed that cannot be opened get no frames, and the summary says why; the others run. If not all weights
    fit into the budget, the run follows a plan. A plan needs times, which are measured if the device cache has none.

    Args:
        bundle: an open bundle.
        options: settings and limits of the run, and the files it writes.
        sinks: told of results, in addition to the sinks of ``options``; closed when the run ends.
        stop: set it to end early.
        progress: called with each model that is prepared for the device.
        profiling: told what is measured next, if times must be measured.

    Raises:
        FeedError: no feed can be opened, or ``options.sources`` names a feed that does not exist.
        InputError: a limit or the memory setting is not possible.
        BackendError: the device cannot run the bundle.
        GemelError: a sink failed.
    """
    manifest = bundle.manifest
    feed_of = {name: query.feed for name, query in manifest.queries.items()}
    trace = None if options.trace is None else Trace()
    feeds, broken = _open_feeds(manifest.feeds, set(feed_of.values()), options, trace)
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
        # Opened last: only the pipeline closes them, so nothing between here and there may fail.
        sinks = [*_sinks(options, queries, feeds), *sinks]
        stats = pipeline.run_pipeline(
            queries,
            feeds,
            infer,
            sinks,
            live=not options.offline,
            frames=options.frames,
            duration=options.duration,
            stop=stop,
            swapping=swapping,
            trace=trace,
        )
        arena = backend.stats
        blocked_ms = (arena.blocked_s - before.blocked_s) * 1e3 + stats.blocked_ms
        _write_trace(trace, options.trace)
        return Summary(
            _with_broken(stats, broken, feed_of),
            backend.name,
            MemoryUse(backend.budget, arena.peak),
            SwapStats(arena.loads - before.loads, arena.loaded - before.loaded, blocked_ms),
            options.policy,
        )


def _swapping(
    bundle: Bundle, backend: Backend, options: RunOptions, queries: Collection[str], profiling: Callable[[str], None]
) -> Swapping | None:
    """Return the input of plans; None if all weights fit, or if the device cannot be measured."""
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
    """Activate every model once: the first activation opens its programs, and no camera should wait for that."""
    for model in dict.fromkeys(bundle.manifest.queries[query].model for query in queries):
        # A model that cannot be used fails again when its queries run, and is reported then.
        with contextlib.suppress(BackendError):
            backend.activate(model)
            backend.release(model)
    if sum(backend.segments.values()) > backend.room:
        backend.evict()


def _watch(trace: Trace | None, lane: str) -> Watch:
    """Return a watch that draws spans on a lane of the trace; one that ignores them if there is no trace."""
    return unwatched if trace is None else partial(trace.span, lane)


def _write_trace(trace: Trace | None, path: Path | None) -> None:
    """Write the trace. A failure is logged: the summary of the run must not be lost for it."""
    if trace is not None and path is not None:
        try:
            trace.write(path)
        except InputError as error:
            _log.warning("%s", error)


def _open_feeds(
    specs: Mapping[str, FeedSpec], used: Collection[str], options: RunOptions, trace: Trace | None
) -> tuple[dict[str, Feed], dict[str, str]]:
    """Open the feeds that queries use.

    Returns:
        Feeds by name, and by name the reasons why other feeds could not be opened.

    Raises:
        FeedError: no feed can be opened.
    """
    feeds: dict[str, Feed] = {}
    broken: dict[str, str] = {}
    for name, spec in feeds_from(specs, options.sources).items():
        if name not in used:
            continue
        try:
            source = resolve(name, spec.source, fps=spec.fps)
            if not source.live:
                source.probe()
        except FeedError as error:
            broken[name] = str(error)
            continue
        # An endless recording would never let an offline run end.
        loop = spec.loop and (not options.offline or options.frames is not None or options.duration is not None)
        feeds[name] = Feed(name, source, fps=spec.fps, loop=loop, watch=_watch(trace, f"decode {name}"))
    if not feeds:
        raise FeedError(next(iter(broken.values()), "the bundle has no queries"))
    return feeds, broken


def _sinks(options: RunOptions, queries: Mapping[str, str], feeds: Mapping[str, Feed]) -> list[Sink]:
    sinks: list[Sink] = []
    if options.results is not None:
        sinks.append(ResultsSink(options.results))
    if options.video is not None:
        sinks.append(VideoSink(options.video, queries))
    if options.live_table:
        sinks.append(LiveTable(queries, feeds=feeds))
    return sinks


def _with_broken(stats: RunStats, broken: Mapping[str, str], feed_of: Mapping[str, str]) -> RunStats:
    """Add feeds that could not be opened to the statistics, and their queries, each with the reason."""
    idle = {query: QueryStats(feed, 0, 0, last_error=broken[feed]) for query, feed in feed_of.items() if feed in broken}
    feeds = {name: FeedStats(0, error=reason) for name, reason in broken.items()}
    queries = {query: idle.get(query) or stats.queries[query] for query in feed_of}
    return replace(stats, queries=queries, feeds={**stats.feeds, **feeds})

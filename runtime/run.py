"""``gemel-run``: a bundle on its feeds, from opening it to the summary."""

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
from ..errors import BackendError, FeedError
from ..frames.source import resolve
from .backends import Backend, open_backend
from .feeds import Feed
from .loop import pipeline
from .loop.inference import Inference
from .loop.plan_input import Swapping
from .loop.profiling import profile_of
from .loop.summary import FeedStats, MemoryUse, QueryStats, RunStats, Summary, SwapStats
from .memory.arena import WARM, Loading
from .planning.planner import POLICIES
from .sinks import LiveTable, ResultsSink, Sink, VideoSink
from .trace import Trace, Watch, unwatched

__all__ = ["RunOptions", "run_bundle"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What a user may ask of a run; the bundle's own settings where left out."""

    backend: str | None = None
    memory: str | int | None = None
    policy: str = "gemel"
    """How queries take turns where not all weights fit; one of :data:`gemel.runtime.planning.planner.POLICIES`."""
    loading: Loading = WARM
    frames: int | None = None
    duration: float | None = None
    offline: bool = False
    """Every query sees every frame, as fast as models go; recordings do not loop unless ``frames`` bounds them."""
    threads: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    """Feed name to the source that replaces the bundle's."""
    results: Path | None = None
    video: Path | None = None
    trace: Path | None = None
    """Where a Chrome trace is written."""
    live_table: bool = False


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

    A feed that cannot be opened leaves its queries without frames and says so in the summary; the others run. Where not
    all weights fit into the budget, a plan is followed; it needs times, which are measured if the device cache has
    none.

    Args:
        bundle: an open bundle.
        options: what was asked for.
        sinks: told of results, beside those that ``options`` ask for; closed when the pipeline ends.
        stop: set it to end early.
        progress: called with each model that is prepared for the device.
        profiling: told what is measured next, if times are.

    Raises:
        FeedError: none of the feeds can be opened, or ``sources`` names one that does not exist.
        InputError: a limit or the memory setting is not possible.
        BackendError: the device cannot run the bundle.
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
        infer = Inference(bundle, backend)
        # Last: the pipeline closes them, and only that.
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
        if trace is not None and options.trace is not None:
            trace.write(options.trace)
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
    """What to plan with; None where all weights fit, or nothing is known of a device that fails."""
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
    """Make what models keep from their first use on, so that no camera waits for it."""
    for model in dict.fromkeys(bundle.manifest.queries[query].model for query in queries):
        # One that cannot be used says so when its queries run.
        with contextlib.suppress(BackendError):
            backend.activate(model)
            backend.release(model)
    if sum(backend.segments.values()) > backend.room:
        backend.evict()


def _watch(trace: Trace | None, lane: str) -> Watch:
    return unwatched if trace is None else partial(trace.span, lane)


def _open_feeds(
    specs: Mapping[str, FeedSpec], used: Collection[str], options: RunOptions, trace: Trace | None
) -> tuple[dict[str, Feed], dict[str, str]]:
    """Feeds by name that queries use, and why those that are missing could not be opened."""
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
    """Queries without frames belong in the summary, with the reason."""
    idle = {query: QueryStats(feed, 0, 0, last_error=broken[feed]) for query, feed in feed_of.items() if feed in broken}
    feeds = {name: FeedStats(0, error=reason) for name, reason in broken.items()}
    queries = {query: idle.get(query) or stats.queries[query] for query in feed_of}
    return replace(stats, queries=queries, feeds={**stats.feeds, **feeds})

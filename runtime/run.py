"""``gemel-run``: a bundle on its feeds, from opening it to the summary."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from ..errors import FeedError
from . import pipeline
from .backends import open_backend
from .bundle import Bundle
from .feeds import Feed, resolve
from .infer import Inference
from .manifest import FeedSpec
from .sinks import LiveTable, ResultsSink, Sink, VideoSink
from .summary import FeedStats, MemoryUse, QueryStats, RunStats, Summary, SwapStats

__all__ = ["Options", "run_bundle"]


@dataclass(frozen=True)
class Options:
    """What a user may ask of a run; the bundle's own settings where left out."""

    backend: str | None = None
    memory: str | int | None = None
    frames: int | None = None
    duration: float | None = None
    offline: bool = False
    """Every query sees every frame, as fast as models go; recordings do not loop unless ``frames`` bounds them."""
    threads: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    """Feed name to the source that replaces the bundle's."""
    results: Path | None = None
    video: Path | None = None
    live_table: bool = False


def run_bundle(
    bundle: Bundle,
    options: Options,
    *,
    stop: Event | None = None,
    progress: Callable[[str], None] = lambda model: None,
) -> Summary:
    """Run every query of a bundle until its feeds end, a limit is reached or ``stop`` is set.

    A feed that cannot be opened leaves its queries without frames and says so in the summary; the others run.

    Raises:
        FeedError: none of the feeds can be opened, or ``sources`` names one that does not exist.
        InputError: a limit or the memory setting is not possible.
        BackendError: the device cannot run the bundle.
    """
    manifest = bundle.manifest
    feed_of = {name: query.feed for name, query in manifest.queries.items()}
    feeds, broken = _open_feeds(manifest.feeds, set(feed_of.values()), options)
    queries = {name: feed for name, feed in feed_of.items() if feed in feeds}
    with open_backend(
        bundle, options.backend, memory=options.memory, threads=options.threads, progress=progress
    ) as backend:
        infer = Inference(bundle, backend)
        # Last: the pipeline closes them, and only that.
        sinks = _sinks(options, queries, feeds)
        stats = pipeline.run(
            queries,
            feeds,
            infer,
            sinks,
            live=not options.offline,
            frames=options.frames,
            duration=options.duration,
            stop=stop,
        )
        arena = backend.stats
        return Summary(
            _with_broken(stats, broken, feed_of),
            backend.name,
            MemoryUse(backend.budget, arena.peak),
            SwapStats(arena.loads, arena.loaded, arena.blocked_s * 1e3),
        )


def _open_feeds(
    specs: Mapping[str, FeedSpec], used: Collection[str], options: Options
) -> tuple[dict[str, Feed], dict[str, str]]:
    """Feeds by name that queries use, and why those that are missing could not be opened."""
    unknown = [name for name in options.sources if name not in specs]
    if unknown:
        raise FeedError(f"feed {unknown[0]!r} is not in the bundle; its feeds are {', '.join(specs)}")
    feeds: dict[str, Feed] = {}
    broken: dict[str, str] = {}
    for name, spec in specs.items():
        if name not in used:
            continue
        try:
            source = resolve(name, options.sources.get(name, spec.source), fps=spec.fps)
            if not source.live:
                source.probe()
        except FeedError as error:
            broken[name] = str(error)
            continue
        # An endless recording would never let an offline run end.
        loop = spec.loop and (not options.offline or options.frames is not None or options.duration is not None)
        feeds[name] = Feed(name, source, fps=spec.fps, loop=loop)
    if not feeds:
        raise FeedError(next(iter(broken.values()), "the bundle has no queries"))
    return feeds, broken


def _sinks(options: Options, queries: Mapping[str, str], feeds: Mapping[str, Feed]) -> list[Sink]:
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
    return RunStats(stats.seconds, queries, {**stats.feeds, **feeds})

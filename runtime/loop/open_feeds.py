"""Opening of the feeds of a run: sources are checked, cameras that are missing are tried again later."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from ...bundles.feed_sources import feeds_from
from ...bundles.manifest import FeedSpec
from ...errors import FeedError
from ...frames.settings import ReadSettings
from ...frames.source import Source, resolve
from ..feeds import Feed
from ..trace import Watch, unwatched

__all__ = ["FeedOptions", "decoder_threads", "open_feeds", "open_source"]

_log = logging.getLogger(__name__)

_MOST_THREADS = 4
"""Maximum number of threads that decode one feed."""


@dataclass(frozen=True)
class FeedOptions:
    """Options of a run that concern its feeds."""

    sources: Mapping[str, str] = field(default_factory=dict)
    """Feed -> source to use instead of the source that the bundle states."""
    variables: Collection[str] = ()
    """Environment variables that the bundle's sources may use, besides those that begin with ``GEMEL_``."""
    endless: bool = True
    """Whether recordings of feeds that loop may start again at their end."""


def decoder_threads(feeds: int) -> int:
    """Return how many threads may decode one feed, if ``feeds`` feeds share the processor's cores."""
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // max(1, feeds)))


def open_source(name: str, spec: FeedSpec, options: FeedOptions, threads: int = 1) -> Source:
    """Return the source of a feed, checked as far as possible without opening it.

    Args:
        name: name of the feed.
        spec: the feed as the bundle states it, with ``options.sources`` put in.
        options: options of the run.
        threads: maximum number of threads that decode the feed.

    Raises:
        FeedError: the source does not exist, is not allowed, or names a variable that is not set or not allowed.
    """
    settings = ReadSettings(spec.transport, spec.timeout, spec.hardware, threads)
    # The user's own text may use any variable.
    variables = None if name in options.sources else options.variables
    return resolve(name, spec.source, fps=spec.fps, settings=settings, variables=variables)


def open_feeds(
    specs: Mapping[str, FeedSpec],
    used: Collection[str],
    options: FeedOptions,
    watch: Callable[[str], Watch] = lambda name: unwatched,
    known: Mapping[str, Feed] = {},
) -> tuple[dict[str, Feed], dict[str, str]]:
    """Open the feeds that queries use.

    A camera or stream that cannot be reached is no failure: its feed tries again until it can.

    Args:
        specs: feeds of the bundle, by name.
        used: names of the feeds that queries use.
        options: options of the run.
        watch: function that returns, for a feed's name, the function to tell when decoding of a frame began and ended.
        known: feeds that run already; they are returned as they are.

    Returns:
        Name -> feed, for the feeds that were opened; and name -> reason, for the feeds that could not be opened.

    Raises:
        FeedError: no feed can be opened, or a source in ``options.sources`` does not exist.
    """
    feeds: dict[str, Feed] = {}
    broken: dict[str, str] = {}
    threads = decoder_threads(len(used))
    for name, spec in feeds_from(specs, options.sources).items():
        if name not in used:
            continue
        if name in known:
            feeds[name] = known[name]
            continue
        source: Source | None = None
        try:
            source = open_source(name, spec, options, threads)
            if not source.live:
                source.probe()
        except FeedError as error:
            if source is None and name in options.sources:
                # A name that was mistyped just now is better refused than left out.
                raise
            broken[name] = str(error)
            continue
        loop = spec.loop and options.endless
        feeds[name] = Feed(name, source, fps=spec.fps, loop=loop, watch=watch(name))
    if not feeds:
        raise FeedError(next(iter(broken.values()), "the bundle has no queries"))
    # Said now, because a run of cameras has no end at which a summary would say so.
    for reason in broken.values():
        _log.warning("%s; its queries get no frames in this run", reason)
    return feeds, broken

"""Reference answers: the answers of models that have enough memory and time for every frame."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Event

from ...bundles.feed_sources import feeds_from
from ...bundles.known_variables import known_variables
from ...bundles.reader import Bundle
from ...errors import FeedError
from ...frames.source import Source
from ...runtime.backends import open_backend
from ...runtime.feeds import Feed
from ...runtime.loop import pipeline
from ...runtime.loop.inference import Inference
from ...runtime.loop.open_feeds import FeedOptions, open_source
from .answers import Recorder

__all__ = ["answer_all", "recordings"]


def recordings(bundle: Bundle, sources: Mapping[str, str]) -> dict[str, Source]:
    """Return feed name -> source for all feeds that have a query, and check that each source can be played twice.

    Args:
        bundle: open bundle.
        sources: feed name -> source that replaces the source in the bundle.

    Raises:
        FeedError: a source is a camera or a stream, or cannot be read, or ``sources`` names a feed that does not exist.
    """
    specs = feeds_from(bundle.manifest.feeds, sources)
    options = FeedOptions(sources, known_variables(bundle))
    found: dict[str, Source] = {}
    for name in dict.fromkeys(query.feed for query in bundle.manifest.queries.values()):
        source = open_source(name, specs[name], options)
        if source.live:
            raise FeedError(
                f"feed {name!r}: {source} cannot be played again for the reference answers;"
                f" give a recording with --feed {name}=FILE"
            )
        source.probe()
        found[name] = source
    return found


def answer_all(
    bundle: Bundle,
    sources: Mapping[str, Source],
    frames: Mapping[str, int],
    *,
    backend: str | None = None,
    threads: int | None = None,
    stop: Event | None = None,
) -> Recorder:
    """Run every query on every frame of its feed, with all weights in memory.

    A feed chooses by the time in the recording which pictures become frames. A frame index therefore stands for the
    same picture here as in a live run, even after the recording has started again.

    Args:
        bundle: open bundle.
        sources: feed name -> source, from :func:`recordings`.
        frames: feed name -> number of frames to answer. A feed that does not loop may end earlier.
        backend, threads: as in :func:`gemel.runtime.backends.open_backend`.
        stop: event that ends the run early.

    Raises:
        BackendError: the device cannot run the bundle.
    """
    recorder = Recorder()
    content = bundle.manifest
    with open_backend(bundle, backend, memory="all", threads=threads) as device:
        infer = Inference(bundle, device)
        for name, count in frames.items():
            if count == 0:
                continue
            feed = Feed(name, sources[name], fps=content.feeds[name].fps, loop=content.feeds[name].loop)
            queries = {query: name for query, spec in content.queries.items() if spec.feed == name}
            pipeline.run_pipeline(queries, {name: feed}, infer, [recorder], live=False, frames=count, stop=stop)
    return recorder

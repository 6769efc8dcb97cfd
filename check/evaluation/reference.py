"""Reference answers: the answers of models that have enough memory and time for every frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event

from ...bundles.decode_specs import ClassificationDecode
from ...bundles.feed_sources import feeds_from
from ...bundles.known_variables import known_variables
from ...bundles.reader import Bundle
from ...errors import FeedError
from ...frames.frame import Frame
from ...frames.source import Source
from ...runtime.backends import open_backend
from ...runtime.decode.results import Result
from ...runtime.feeds import Feed
from ...runtime.loop import pipeline
from ...runtime.loop.inference import Inference
from ...runtime.loop.open_feeds import FeedOptions, open_source
from ...runtime.sinks import Sink
from .answers import Recorder

__all__ = ["AnswerCount", "OfflineSettings", "answer_all", "has_several_labels", "recordings"]


@dataclass(frozen=True)
class OfflineSettings:
    """Settings of a measurement that answers the frames of recordings, as ``gemel eval --staleness`` does."""

    frames: int = 300
    """Maximum number of frames of each feed to answer."""
    backend: str | None = None
    """Name of the backend that answers; None for the backend that the bundle names."""
    threads: int | None = None
    """Maximum number of threads that one run of a model may use; None for the backend's default."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Feed name -> source that replaces the source in the bundle."""


class AnswerCount(Sink):
    """Sink that counts answers, and keeps the last error of each query.

    Args:
        told: function called with the number of answers and errors so far, after each of them.
    """

    pixels, queued = False, False

    def __init__(self, told: Callable[[int], None] = lambda count: None) -> None:
        self.errors: dict[str, str] = {}
        """Query -> message of the last frame on which the query failed."""
        self._told, self._count = told, 0

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        self._count += 1
        self._told(self._count)

    def on_error(self, query: str, frame: Frame, message: str) -> None:
        self.errors[query] = message
        self._count += 1
        self._told(self._count)


def has_several_labels(bundle: Bundle, query: str) -> bool:
    """Return whether a query's model gives an image several classes at once."""
    decode = bundle.manifest.models[bundle.manifest.queries[query].model].decode
    return isinstance(decode, ClassificationDecode) and decode.multi_label


def recordings(bundle: Bundle, sources: Mapping[str, str], left_out: dict[str, str] | None = None) -> dict[str, Source]:
    """Return feed name -> source for all feeds that have a query, and check that each source can be played twice.

    Args:
        bundle: open bundle.
        sources: feed name -> source that replaces the source in the bundle.
        left_out: dict that receives feed name -> reason, for feeds that are left out because the bundle's source cannot
            be played twice; None if every feed must be a recording.

    Raises:
        FeedError: a source is a camera or a stream, or cannot be read, and may not be left out; no feed is left; or
            ``sources`` names a feed that does not exist.
    """
    specs = feeds_from(bundle.manifest.feeds, sources)
    options = FeedOptions(sources, known_variables(bundle))
    found: dict[str, Source] = {}
    errors: list[FeedError] = []
    for name in dict.fromkeys(query.feed for query in bundle.manifest.queries.values()):
        # A source that the user names now is never left out.
        absent = None if name in sources else left_out
        try:
            found[name] = _recording(name, open_source(name, specs[name], options))
        except FeedError as error:
            if absent is None:
                raise
            absent[name] = str(error)
            errors.append(error)
    if errors and not found:
        raise errors[0]
    return found


def _recording(name: str, source: Source) -> Source:
    """Return the source of a feed, checked to be a recording that can be read.

    Raises:
        FeedError: the source is a camera or a stream, or cannot be read.
    """
    if source.live:
        raise FeedError(
            f"feed {name!r}: {source} cannot be played again for the reference answers;"
            f" give a recording with --feed {name}=FILE"
        )
    source.probe()
    return source


def answer_all(
    bundle: Bundle,
    sources: Mapping[str, Source],
    frames: Mapping[str, int],
    *,
    backend: str | None = None,
    threads: int | None = None,
    stop: Event | None = None,
    loop: bool = True,
    beside: Sequence[Sink] = (),
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
        loop: whether feeds that loop in the bundle start again at their end.
        beside: sinks that receive the answers, too.

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
            spec = content.feeds[name]
            feed = Feed(name, sources[name], fps=spec.fps, loop=loop and spec.loop)
            queries = {query: name for query, each in content.queries.items() if each.feed == name}
            sinks = [recorder, *beside]
            pipeline.run_pipeline(queries, {name: feed}, infer, sinks, live=False, frames=count, stop=stop)
    return recorder

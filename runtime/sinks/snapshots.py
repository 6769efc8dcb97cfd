"""Writer of annotated pictures of events: a JPEG file when a query finds something."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import cv2

from ...bundles.output_specs import SnapshotsSpec
from ..decode.results import Class, Detection, Result, Segmentation, Text
from .draw import Palette, annotate
from .events import SinkEvent, wall_time
from .stamped_folder import StampedFolder, put_whole
from .writer import Writer

__all__ = ["SnapshotWriter", "event_labels"]

_QUALITY = 90
"""JPEG quality of a picture, from 0 to 100."""
_PRUNE_EVERY = 20
"""Number of written pictures after which the size of their folder is looked at again."""


class SnapshotWriter(Writer):
    """Writer of files ``<query>-<labels>-<time>.jpg``, with the boxes of the query that found the labels.

    Args:
        spec: folder, labels, cool-down, and limit of the folder.
        queries: feed of each query; the order of queries decides their colours.
    """

    pixels = True
    depth = 16
    most_bytes = 128 << 20

    def __init__(self, spec: SnapshotsSpec, queries: Mapping[str, str]) -> None:
        self._spec = spec
        self._labels = None if spec.labels is None else frozenset(spec.labels)
        self._colors = Palette(queries)
        self._folder = StampedFolder(Path(spec.folder), ".jpg", spec.keep)
        self._last: dict[tuple[str, str], float] = {}
        """(query, label) -> time of the last event, in seconds of media."""
        self._count = 0

    def wants(self, event: SinkEvent) -> bool:
        now, query = event.frame.time, event.query
        labels = event_labels(event.result, self._labels)
        if not any(self._is_new(query, label, now) for label in labels):
            return False
        # One picture shows all labels: none of them is an event of its own for a while.
        self._last.update({(query, label): now for label in labels})
        return True

    def _is_new(self, query: str, label: str, now: float) -> bool:
        last = self._last.get((query, label))
        # Time of media never goes back, unless the feed was replaced.
        return last is None or not 0 <= now - last < self._spec.cooldown

    def write(self, batch: deque[SinkEvent]) -> None:
        event = batch[0]
        frame = event.frame
        time = wall_time(frame)
        drawn = annotate(frame.image, {event.query: event.result}, self._colors, frame.time, time)
        done, encoded = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        if not done:
            raise ValueError(f"a picture of {drawn.shape[1]} x {drawn.shape[0]} pixels cannot be written as JPEG")
        if self._count % _PRUNE_EVERY == 0:
            self._folder.prune()
        self._count += 1
        labels = event_labels(event.result, self._labels)
        path = self._folder.new("-".join((event.query, *labels)), time)
        try:
            put_whole(path, encoded.tobytes())
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        batch.popleft()


def event_labels(result: Result, wanted: frozenset[str] | None = None) -> list[str]:
    """Return the labels in a result that are an event, without repetition, the one with the highest score first.

    Args:
        result: result of a query.
        wanted: labels to look for. If None, every object and text is an event; a class of a whole image, which always
            has one, is not.
    """
    found: list[str] = []
    if isinstance(result, Text):
        found = [result.text] if result.text else []
    elif isinstance(result, Segmentation):
        found = [] if wanted is None else [each.label for each in result.classes]
    elif isinstance(result, tuple):
        found = [item.label for item in result if isinstance(item, Detection)]
        if wanted is not None:
            found += [item.label for item in result[:1] if isinstance(item, Class)]
    return [label for label in dict.fromkeys(found) if wanted is None or label in wanted]

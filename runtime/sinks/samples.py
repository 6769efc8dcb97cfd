"""Writer of samples: now and then a frame as JPEG, with the answers that the queries of its feed gave on it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from ...bundles.output_specs import SamplesSpec
from ...errors import first_line
from ...frames.frame import Frame, Image
from ..decode.results import Result, result_to_json
from .events import SinkEvent, json_line, wall_time
from .run_info import RunInfo
from .sample_folder import SampleFolder
from .sample_record import SampleRecord
from .sampling import Sampling
from .sink_counts import SinkCounts
from .upload import Uploader
from .writer import Writer

__all__ = ["SampleWriter"]

_PATIENCE = 0.25
"""Part of the time between two samples for which a frame that all queries of the feed have answered is waited for."""
_MOST_NOTED = 256
"""Maximum number of frames of which it is remembered which queries have answered them."""

_Noted = tuple[str, frozenset[str]]
"""Id of the bundle that answered a frame, and the queries that did."""


class SampleWriter(Writer):
    """Writer of samples: a frame of each feed every few seconds, with the answers given on this very frame.

    A frame that all queries of the feed have answered is preferred. Where queries take turns, there may be none: after
    a quarter of the time between two samples, a frame that a query without a recent sample has answered is taken. An
    answer that a query gave on an earlier frame is no answer on this one and is left out.

    Args:
        spec: folder, time between samples, and limits of the folder.
        queries: query -> its feed; the mapping may change while the run goes on.
        info: identification of the run.
        sampling: hook and upload, which only the user of the run can give.
    """

    kinds = frozenset({"result", "frame"})
    pixels = True
    polite = True
    depth = 8
    most_bytes = 128 << 20
    idle_every = 60.0

    def __init__(self, spec: SamplesSpec, queries: Mapping[str, str], info: RunInfo, sampling: Sampling) -> None:
        self._spec, self._queries, self._info, self._sampling = spec, queries, info, sampling
        self._folder = SampleFolder(Path(spec.folder).expanduser(), spec.keep, spec.age)
        self._noted: dict[tuple[str, int], _Noted] = {}
        """(feed, frame index) -> what is known of a frame that still waits for queries."""
        self._chosen: dict[tuple[str, int], _Noted] = {}
        """(feed, frame index) -> what is known of a frame that is to be stored."""
        self._last: dict[str, float] = {}
        """Query -> media time of its last sample, in seconds."""
        self._due: dict[str, float] = {}
        """Feed -> media time since which a sample of it is due, in seconds."""
        self._quiet: dict[str, tuple[float, float]] = {}
        """Feed -> media times in seconds between which none of its queries needs a sample."""
        self._uploader = None if sampling.upload is None else Uploader(self._folder, sampling.upload)

    def wants(self, event: SinkEvent) -> bool:
        key = (event.frame.feed, event.frame.index)
        if event.kind == "result":
            if self._is_feed_due(key[0], event.frame.time):
                self._note(key, event.query)
            return False
        noted = self._noted.pop(key, None)
        if noted is None:
            return False
        bundle, names = noted[0], noted[1] & event.results.keys()
        if not self._is_chosen(event.frame, names):
            return False
        _keep(self._chosen, key, (bundle, names))
        return True

    def write(self, batch: deque[SinkEvent]) -> None:
        event = batch[0]
        key = (event.frame.feed, event.frame.index)
        bundle, names = self._chosen[key]
        answers = {query: event.results[query] for query in self._queries if query in names}
        image = self._to_store(event.frame.image, answers)
        if image is not None:
            self._store(event.frame, image, bundle, answers)
        del self._chosen[key]
        batch.popleft()
        if self._uploader is not None:
            self._uploader.announce()

    def idle(self) -> None:
        self._folder.prune()

    def counts_beside(self) -> Mapping[str, SinkCounts]:
        return {} if self._uploader is None else {"upload": self._uploader.counts()}

    def close(self) -> None:
        if self._uploader is not None:
            self._uploader.close()

    def _is_due(self, query: str, now: float) -> bool:
        last = self._last.get(query)
        # Media time never goes back, unless the feed was replaced.
        return last is None or not 0 <= now - last < self._spec.every

    def _is_feed_due(self, feed: str, now: float) -> bool:
        """Return whether any query of a feed needs a sample. Called for each result, so it remembers when none does."""
        begin, end = self._quiet.get(feed, (0.0, 0.0))
        if begin <= now < end:
            return False
        mine = [query for query, other in self._queries.items() if other == feed]
        if any(self._is_due(query, now) for query in mine):
            return True
        self._due.pop(feed, None)
        self._quiet[feed] = (now, min((self._last[query] for query in mine), default=now) + self._spec.every)
        return False

    def _note(self, key: tuple[str, int], query: str) -> None:
        """Note that a query has answered a frame. After a reload, answers of the earlier bundle do not count."""
        bundle = self._sampling.bundle()
        before, names = self._noted.get(key, (bundle, frozenset[str]()))
        _keep(self._noted, key, (bundle, (names if before == bundle else frozenset()) | {query}))

    def _is_chosen(self, frame: Frame, names: frozenset[str]) -> bool:
        """Return whether a frame is stored, and note that its queries have a sample.

        Args:
            frame: frame that no query will take any more.
            names: queries that have answered this very frame.
        """
        feed, now = frame.feed, frame.time
        if not any(self._is_due(query, now) for query in names):
            return False
        if not names.issuperset(query for query, other in self._queries.items() if other == feed):
            since = self._due.setdefault(feed, now)
            if 0 <= now - since < _PATIENCE * self._spec.every:
                return False
        self._last.update(dict.fromkeys(names, now))
        return True

    def _to_store(self, image: Image, answers: Mapping[str, Result]) -> Image | None:
        """Return the pixels to store: those of the user's hook, if there is one.

        Raises:
            RuntimeError: the hook failed, so the frame must not be stored.
        """
        if self._sampling.hook is None:
            return image
        try:
            found = self._sampling.hook(image.copy(), answers)
        except Exception as error:
            # Also for an OSError, which would have the frame written again.
            raise RuntimeError(f"the hook failed: {type(error).__name__}: {first_line(error)}") from error
        if found is not None and (found.dtype != np.uint8 or found.shape != image.shape):
            raise RuntimeError(f"the hook gave {found.dtype} {found.shape}, not uint8 {image.shape}")
        return found

    def _store(self, frame: Frame, image: Image, bundle: str, answers: Mapping[str, Result]) -> None:
        """Write both files of a sample.

        Raises:
            OSError: the files cannot be written.
            ValueError: the sample cannot be written at all.
        """
        done, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self._spec.quality])
        if not done:
            raise ValueError(f"a frame of {image.shape[1]} x {image.shape[0]} pixels cannot be written as JPEG")
        picture, at = encoded.tobytes(), wall_time(frame)
        record = SampleRecord(
            run=self._info.run,
            bundle=bundle,
            feed=frame.feed,
            frame=frame.index,
            time=round(frame.time, 3),
            at=round(at, 3),
            image="-",  # known when there is a file
            sha256=hashlib.sha256(picture).hexdigest(),
            size=(image.shape[0], image.shape[1]),
            changed=self._sampling.hook is not None,
            answers={query: result_to_json(result) for query, result in answers.items()},
            skipped=tuple(q for q, feed in self._queries.items() if feed == frame.feed and q not in answers),
        )
        content = record.model_dump()
        self._folder.write(frame.feed, at, picture, lambda name: json_line({**content, "image": name}))


def _keep(found: dict[tuple[str, int], _Noted], key: tuple[str, int], noted: _Noted) -> None:
    """Put an entry into a dictionary that must not grow: the oldest entries are of frames that were dropped."""
    found[key] = noted
    while len(found) > _MOST_NOTED:
        del found[next(iter(found))]

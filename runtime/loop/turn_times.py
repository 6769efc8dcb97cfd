"""Times of a model's turns on artificial frames: frames one by one, and as one batch where that may be faster."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from time import perf_counter

import numpy as np

from ...errors import first_line
from ...frames.frame import Frame, Image
from ..ort.rounding import equal_but_for_rounding
from .batches import BATCHES
from .inference import Inference

__all__ = ["ENOUGH_S", "TurnTimes", "median_ms", "pictures_of"]

ENOUGH_S = 3.0
"""Total seconds of one model's turns, or of one segment's loads, after which the measurement is not repeated."""

_PAYS = 0.03
"""Minimum fraction of a turn's time that running its frames as one batch must save for batches of that size to be used.

A smaller saving is within the uncertainty of measured times.
"""

_log = logging.getLogger(__name__)


class TurnTimes:
    """Measured turns of one model, on frames one by one and as one batch.

    Args:
        singly: inference that runs frames one by one.
        together: inference that runs all frames of a turn as one batch.
        query: query of the model that is measured.
        model: name of the model.
        feed: name of the feed that frames pretend to come from.
        pictures: different images; a turn on n frames takes the first n images.
        indices: iterator that gives every frame an index of its own.
        most: maximum number of frames in a batch; 1 to measure no batches.
    """

    def __init__(
        self,
        singly: Inference,
        together: Inference,
        query: str,
        model: str,
        feed: str,
        pictures: Sequence[Image],
        indices: Iterator[int],
        most: int,
    ) -> None:
        self._singly, self._together = singly, together
        self._query, self._model, self._feed = query, model, feed
        self._pictures, self._indices = pictures, indices
        self._tried = [size for size in BATCHES if 1 < size <= most]
        """Numbers of frames for which a turn is also measured as one batch."""
        self._times: dict[int, list[float]] = {}
        """Number of frames in a turn -> seconds of each measured turn with frames one by one."""
        self._batches: dict[int, list[tuple[float, float]]] = {}
        """Number of frames -> pairs of seconds: a turn with frames one by one, and the same turn as one batch."""

    def take(self, long: float) -> None:
        """Measure a turn for each number of frames, unless the model's turns took long enough so far.

        Stop after a turn that takes longer than ``long`` seconds.
        """
        spent = (*self._times.values(), *([batch for _, batch in pairs] for pairs in self._batches.values()))
        if sum(map(sum, spent)) >= ENOUGH_S:
            return
        # Not timed: this turn loads the weights, and the very first also creates what the model keeps from then on.
        self._turn(self._singly, 1)
        for frames in BATCHES:
            ways = [self._singly, self._together] if self._tries(frames) else [self._singly]
            # Each way comes first in every second round.
            if len(self._times.setdefault(frames, [])) % 2:
                ways.reverse()
            seconds = {way: self._turn(way, frames) for way in ways}
            self._times[frames].append(seconds[self._singly])
            if self._together in seconds:
                pair = seconds[self._singly], seconds[self._together]
                self._batches.setdefault(frames, []).append(pair)
            if min(seconds.values()) > long:
                break

    @property
    def gains(self) -> dict[int, float]:
        """Number of frames -> time of a batch / time of its frames one by one, for batches that save 3 % or more."""
        ratios = {frames: median(batch / single for single, batch in pairs) for frames, pairs in self._batches.items()}
        return {frames: ratio for frames, ratio in ratios.items() if ratio <= 1 - _PAYS}

    def run_ms(self, gains: Mapping[int, float]) -> dict[int, float]:
        """Return the number of frames in a turn -> median milliseconds of the turn, as one batch if that is faster.

        Args:
            gains: :attr:`gains` of this model, or of another model with the same programs.
        """
        return {frames: median_ms(times, gains.get(frames, 1.0)) for frames, times in self._times.items()}

    def _tries(self, frames: int) -> bool:
        """Return whether to measure a batch of ``frames`` frames now.

        Batches of the fewest and of the most frames are measured once. Batches of other sizes, and further
        measurements, follow only if one of these two is faster than its frames one by one.
        """
        if frames not in self._tried:
            return False
        if not self.gains and (frames in self._batches or frames not in (self._tried[0], self._tried[-1])):
            return False
        if frames not in self._batches and (reason := self._differs(frames)):
            _log.warning("model %s: its frames run one by one: a batch of %d %s", self._model, frames, reason)
            self._tried, self._batches = [], {}
            return False
        return True

    def _differs(self, count: int) -> str:
        """Run a batch of ``count`` frames, and say how it differs from single frames; an empty string if it does not.

        The first and the last frame are compared. The batch is not timed: the first one of its size also allocates.
        """
        frames = self._frames(count)
        try:
            rows = self._together.outputs(self._model, frames)
            alone = [self._singly.outputs(self._model, [frames[end]])[0] for end in (0, -1)]
        except Exception as error:
            return f"fails: {first_line(error)}"
        wrong = [
            port
            for end, expected in zip((0, -1), alone, strict=True)
            for port, values in expected.items()
            if not equal_but_for_rounding(rows[end][port], values)
        ]
        return f"gives other values of output {wrong[0]}" if wrong else ""

    def _turn(self, infer: Inference, count: int) -> float:
        """Run the model on ``count`` frames, and return the seconds that the runs took."""
        pairs = [(self._query, frame) for frame in self._frames(count)]
        began = perf_counter()
        for outcome in infer(pairs):
            if isinstance(outcome, Exception):
                raise outcome
        return perf_counter() - began

    def _frames(self, count: int) -> list[Frame]:
        """Return frames with new indices: a frame with a known index would not be prepared again."""
        return [Frame(self._feed, next(self._indices), picture, 0.0, 0.0) for picture in self._pictures[:count]]


def median_ms(seconds: Sequence[float], factor: float = 1.0) -> float:
    """Return the median of times in seconds, multiplied by a factor, in milliseconds."""
    # Measured times are less accurate than four digits.
    return float(f"{median(seconds) * factor * 1e3:.4g}")


def pictures_of(size: tuple[int, int]) -> list[Image]:
    """Return an image ``[H, W, 3]`` for each frame of the longest turn: a texture with many edges, which moves."""
    y, x = np.indices(size)
    textures = ((x + 8 * shift) ^ y for shift in range(max(BATCHES)))
    return [np.stack([texture, 2 * texture, 3 * texture], 2).astype(np.uint8) for texture in textures]

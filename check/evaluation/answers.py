"""Recording of a run's answers, and choice of the answer that counts for each frame, processed or skipped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...frames.frame import Frame
from ...runtime.decode.results import Raw, Result
from ...runtime.sinks import Sink

__all__ = ["Answer", "Recorder", "arrivals", "standing"]


_MOST_VALUES = 4096
"""Maximum number of values to keep of a raw output: enough for a cosine, and few enough for a long run."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer of a query to one frame, with its times."""

    frame: int
    """Index of the answered frame in its feed."""
    time: float
    """Time of the answered frame in the recording, in seconds."""
    arrived: float
    """Time of the answered frame's arrival, in seconds of the monotonic clock."""
    done: float
    """Time at which a query's answer to a frame was ready, in seconds of the monotonic clock."""
    result: Result


class Recorder(Sink):
    """Sink that keeps all answers of a run, and none of its pictures.

    Of a large raw output the sink keeps 4096 values at equal steps.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        """Query name -> the query's answers in a run, in the order of the frames."""

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        done = frame.arrived + latency_ms / 1e3
        self.answers[query].append(Answer(frame.index, frame.time, frame.arrived, done, _thinned(result)))


def _thinned(result: Result) -> Result:
    if not isinstance(result, Raw):
        return result
    return Raw({name: _some(values.reshape(-1)) for name, values in result.outputs.items()})


def _some(values: NDArray[Any]) -> NDArray[Any]:
    if len(values) <= _MOST_VALUES:
        return values
    return values[np.linspace(0, len(values) - 1, _MOST_VALUES).astype(np.intp)]


def arrivals(times: Sequence[float], known: Iterable[Answer]) -> NDArray[np.float64]:
    """Return the arrival times of a feed's frames, ``[F]``, in seconds of the monotonic clock.

    A run does not record when a skipped frame arrived. A recording is played in real time, as a camera would deliver
    it. The delay of a skipped frame, from its time in the recording to its arrival, is therefore interpolated between
    the delays of the answered frames before and after it.

    Args:
        times: times of F frames in the recording, in seconds.
        known: answers of any queries to frames of the feed. If empty, the recording is assumed to have begun at 0.
    """
    seen = {answer.time: answer.arrived - answer.time for answer in known}
    moments = sorted(seen)
    own = np.asarray(times, np.float64)
    if not moments:
        return own
    late: NDArray[np.float64] = np.interp(own, moments, [seen[moment] for moment in moments])
    return own + late


def standing(given: Sequence[Answer], frames: Sequence[int], deadlines: NDArray[np.float64]) -> list[Result | None]:
    """Return the result that counts for each frame: the newest that was ready at the frame's deadline, for this frame
    or an earlier one.

    Args:
        given: answers of one query, in the order of increasing ``frame`` and ``done``.
        frames: indices of F frames.
        deadlines: deadlines of the F frames, ``[F]``, in seconds of the monotonic clock.

    Returns:
        One result per frame; None if no answer was ready by the deadline.
    """
    old_enough = np.searchsorted([answer.frame for answer in given], frames, side="right")
    there = np.searchsorted([answer.done for answer in given], deadlines, side="right")
    return [given[count - 1].result if count else None for count in np.minimum(old_enough, there).tolist()]

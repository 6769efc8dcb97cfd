"""Which answer counts for which frame, whether or not the frame was processed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...frames.frame import Frame
from ...runtime.decode.results import Result
from ...runtime.sinks import Sink

__all__ = ["Answer", "Recorder", "arrivals", "standing"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query said of a frame. ``arrived`` and ``done`` are seconds of the monotonic clock."""

    frame: int
    """Its index in the feed."""
    time: float
    """Seconds of the recording."""
    arrived: float
    done: float
    result: Result


class Recorder(Sink):
    """Keeps all answers of a run, and none of its pictures."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        """Of each query, in the order in which they were given, which is that of the frames."""

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        done = frame.arrived + latency_ms / 1e3
        self.answers[query].append(Answer(frame.index, frame.time, frame.arrived, done, result))


def arrivals(times: Sequence[float], known: Iterable[Answer]) -> NDArray[np.float64]:
    """When the frames of a feed arrived, by the monotonic clock, ``[F]``.

    Nobody is told of a frame that is skipped. But a recording that stands for a camera is played at its own pace: all
    its frames are as late as those before and after them.

    Args:
        times: seconds of the recording of F frames.
        known: answers on the same feed, of whatever query; without any, it is as if the recording began at 0.
    """
    seen = {answer.time: answer.arrived - answer.time for answer in known}
    moments = sorted(seen)
    own = np.asarray(times, np.float64)
    if not moments:
        return own
    late: NDArray[np.float64] = np.interp(own, moments, [seen[moment] for moment in moments])
    return own + late


def standing(given: Sequence[Answer], frames: Sequence[int], deadlines: NDArray[np.float64]) -> list[Result | None]:
    """What stands as the answer to each frame when it is due: the newest result of this frame or one before it.

    Args:
        given: the answers of a query; ``frame`` and ``done`` both grow.
        frames: indices of F frames.
        deadlines: of these frames, ``[F]``, by the clock of ``done``.

    Returns:
        A result a frame; None where none was there in time.
    """
    old_enough = np.searchsorted([answer.frame for answer in given], frames, side="right")
    there = np.searchsorted([answer.done for answer in given], deadlines, side="right")
    return [given[count - 1].result if count else None for count in np.minimum(old_enough, there).tolist()]

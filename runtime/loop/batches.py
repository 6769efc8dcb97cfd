"""Batches: which frames of a turn one run of a model takes together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ...frames.frame import Frame

__all__ = ["BATCHES", "ModelRun", "allowed_sizes", "plan_runs"]

BATCHES = (1, 2, 4, 8)
"""Numbers of frames in the turns that are measured, and in the batches that are tried."""


@dataclass(frozen=True, eq=False)
class ModelRun:
    """Run of a model's stage ``main`` on different frames, of one feed or several."""

    model: str
    frames: tuple[Frame, ...]
    wanted: tuple[tuple[int, ...], ...]
    """Tuple for each frame: the indices of the (query, frame) pairs that want an answer to the frame."""

    def singly(self) -> Iterator[ModelRun]:
        """Split the run into runs of one frame each, and yield these."""
        for frame, numbers in zip(self.frames, self.wanted, strict=True):
            yield ModelRun(self.model, (frame,), (numbers,))


def plan_runs(
    pairs: Sequence[tuple[str, Frame]], model_of: Mapping[str, str], sizes: Mapping[str, Collection[int]]
) -> dict[int, ModelRun]:
    """Return, for each pair of a query and a frame, the run that answers it.

    Frames of one model run together, also frames of different queries and feeds, in runs as large as ``sizes`` allow.

    Args:
        pairs: names of queries, each with a frame.
        model_of: query -> model.
        sizes: model -> numbers of frames that may run together, as :func:`allowed_sizes` returns them. The frames of a
            model that is left out run one by one.

    Returns:
        Index in ``pairs`` -> run that answers the pair; all pairs of a run have the same object.
    """
    wanted: dict[str, dict[tuple[str, int], tuple[Frame, list[int]]]] = {}
    for number, (query, frame) in enumerate(pairs):
        of_model = wanted.setdefault(model_of[query], {})
        of_model.setdefault((frame.feed, frame.index), (frame, []))[1].append(number)
    found: dict[int, ModelRun] = {}
    for model, by_frame in wanted.items():
        waiting = list(by_frame.values())
        for size in _split(len(waiting), sizes.get(model, ())):
            taken, waiting = waiting[:size], waiting[size:]
            run = ModelRun(model, tuple(frame for frame, _ in taken), tuple(tuple(numbers) for _, numbers in taken))
            found.update((number, run) for numbers in run.wanted for number in numbers)
    return found


def allowed_sizes(measured: Collection[int]) -> frozenset[int]:
    """Return the numbers of frames that may run together, given those of :data:`BATCHES` that are faster as one batch.

    A number between two neighbours of :data:`BATCHES` is allowed if both neighbours are faster.
    """
    between = (range(low, high) for low, high in pairwise(BATCHES) if low in measured and high in measured)
    return frozenset(measured).union(*between)


def _split(count: int, sizes: Collection[int]) -> Iterator[int]:
    """Yield the numbers of frames of the runs that ``count`` frames are answered in, the largest run first."""
    while count:
        size = max((size for size in sizes if size <= count), default=1)
        yield size
        count -= size

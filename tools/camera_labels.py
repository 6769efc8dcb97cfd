"""Label the objects in a fixed camera's video with a public detector, more carefully than the detector does by itself.

The detector looks at each frame and its mirror image, and at four overlapping parts of the frame, which show small
objects larger. What these views find is joined, and followed over time. An object is labelled if it is seen for some
frames, surely enough in their mean; frames between two sightings get a box in between. So the labels are steadier than
the detector's answers, and a detector that is trained on them can become better at this camera.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemel.bundles.decode_specs import SsdDecode
from gemel.frames.preprocess import preprocess
from gemel.runtime.decode import DecodeContext, build_decoder
from gemel.runtime.decode.results import Detection
from gemel.workload.zoo.ssdlite import SsdMobileNetV2

__all__ = ["Frame", "SeenBoxes", "detect", "follow", "join_views", "label_frames", "one_class", "overlaps"]

Frame = NDArray[np.uint8]
"""Pixels of a frame, ``[H, W, 3]`` BGR."""
SeenBoxes = NDArray[np.float32]
"""Boxes in a frame with their scores, ``[K, 5]``: x1 y1 x2 y2 in pixels of the frame, and the score from 0 to 1."""

_PART = 0.6
"""Side of each of the four overlapping parts of a frame, as a fraction of the frame's side."""
_WEAK, _SURE = 0.25, 0.45
"""Minimum score of a sighting, and minimum mean of the scores of an object that is labelled: a stone that looks like a
person is seen surely in a few frames only."""
_SAME, _NEXT = 0.5, 0.25
"""Minimum overlap of two boxes of one object, in two views of a frame, and in neighbouring frames."""
_SHORTEST = 3
"""Minimum number of sightings of an object that is labelled."""
_LARGEST = 0.7
"""Largest object, as a fraction of the frame: a box of nearly all of it is a mistake of detectors on empty frames."""
_MISSED = 2
"""Maximum number of frames in a row in which an object that is followed is not seen."""
_EDGE = 0.02
"""Margin of a part of a frame, as a fraction of its side. A box that reaches into it may be cut off, and is dropped."""


def one_class(state: dict[str, Tensor], classes: int, number: int) -> dict[str, Tensor]:
    """Return a detector's state dict with the outputs of one class only.

    Args:
        state: state dict of an SSD with ``classes`` classes and a background.
        classes: number of classes, the background not counted.
        number: number of the class to keep, the background not counted.
    """
    kept = dict(state)
    last = {}
    for name in state:
        if name.startswith("class_heads."):
            # The last layer of a head has a row for each anchor and class. SSDLite's heads have another before it.
            level, layer, *_ = name.split(".")[1:]
            last[level] = layer
    for level, layer in last.items():
        for part in ("weight", "bias"):
            name = f"class_heads.{level}.{layer}.{part}"
            rows = state[name].reshape(-1, classes + 1, *state[name].shape[1:])[:, [0, number + 1]]
            kept[name] = rows.flatten(0, 1).clone()
    return kept


def detect(model: SsdMobileNetV2, frames: Sequence[Frame], threshold: float) -> list[SeenBoxes]:
    """Return the boxes that a detector with one class finds in each frame.

    Args:
        model: detector in eval mode.
        frames: frames of any sizes, run as one batch.
        threshold: minimum score.
    """
    spec = model.input_defaults()
    assert spec.size is not None
    decode, tensors = model.decode(spec.size)
    assert isinstance(decode, SsdDecode)
    decoder = build_decoder(decode, DecodeContext(tensors.__getitem__, ["0"], threshold))
    inputs, places = zip(*(preprocess(frame, spec) for frame in frames), strict=True)
    with torch.no_grad():
        logits, boxes = model(torch.from_numpy(np.concatenate(inputs)).contiguous(memory_format=torch.channels_last))
    found = []
    for row, place in enumerate(places):
        answer = decoder({"logits": logits[[row]].numpy(), "boxes": boxes[[row]].numpy()}, place, _no_stage)
        assert isinstance(answer, tuple)
        rows = [(*each.box, each.score) for each in answer if isinstance(each, Detection)]
        found.append(np.array(rows, np.float32).reshape(-1, 5))
    return found


def _no_stage(name: str, inputs: object) -> NoReturn:
    """Raise AssertionError, because a one-stage detector has no further stage."""
    raise AssertionError(f"a one-stage detector asks for stage {name}")


def label_frames(model: SsdMobileNetV2, frames: Sequence[Frame]) -> list[SeenBoxes]:
    """Return the labelled objects of each frame of a video, in order of time.

    Args:
        model: detector with one class, in eval mode.
        frames: consecutive frames, near enough in time for an object to overlap itself in the next.
    """
    return follow([_look_closely(model, frame) for frame in frames])


def _look_closely(model: SsdMobileNetV2, frame: Frame) -> SeenBoxes:
    """Return the boxes that all views of one frame find together."""
    height, width = frame.shape[:2]
    whole = (0, 0, width, height)
    part_width, part_height = round(width * _PART), round(height * _PART)
    parts = [
        (left, top, left + part_width, top + part_height)
        for left in (0, width - part_width)
        for top in (0, height - part_height)
    ]
    views = [frame, frame[:, ::-1], *(frame[top:bottom, left:right] for left, top, right, bottom in parts)]
    seen = detect(model, [np.ascontiguousarray(view) for view in views], _WEAK / 2)
    seen[1][:, [0, 2]] = width - seen[1][:, [2, 0]]
    for boxes, (left, top, *_) in zip(seen[2:], parts, strict=True):
        boxes[:, :4] += [left, top, left, top]
    boxes = join_views([whole, whole, *parts], seen)
    return boxes[(boxes[:, 2:4] - boxes[:, :2]).prod(1) <= _LARGEST * width * height]


def join_views(areas: Sequence[tuple[int, int, int, int]], seen: Sequence[SeenBoxes]) -> SeenBoxes:
    """Join what several views of a frame find into one box for each object.

    The score of an object is the larger of two means: over the views of the whole frame, and over the parts of the
    frame that show all of the object. A view that does not find the object counts as 0.

    Args:
        areas: x1 y1 x2 y2 of each view in the frame, in pixels; a view of the whole frame is as large as the largest.
        seen: boxes found in each view, in pixels of the frame.
    """
    right, bottom = max(area[2] for area in areas), max(area[3] for area in areas)
    rows = [
        np.column_stack([boxes[inside], np.full(int(inside.sum()), view)])
        for view, (area, boxes) in enumerate(zip(areas, seen, strict=True))
        for inside in [_inside(boxes, area, (right, bottom))]
    ]
    left = np.concatenate(rows)
    left = left[np.argsort(-left[:, 4], kind="stable")]
    joined = []
    while len(left):
        same = overlaps(left[:1], left)[0] >= _SAME
        group, left = left[same], left[~same]
        box = np.average(group[:, :4], 0, group[:, 4])
        means = {True: [0.0], False: [0.0]}
        for view, area in enumerate(areas):
            if not _inside(box[None], area, (right, bottom))[0]:
                continue
            scores = group[group[:, 5] == view, 4]
            means[area == (0, 0, right, bottom)].append(float(scores.max()) if len(scores) else 0.0)
        score = max(sum(each) / max(len(each) - 1, 1) for each in means.values())
        if score >= _WEAK:
            joined.append([*box, score])
    return np.array(joined, np.float32).reshape(-1, 5)


def _inside(boxes: SeenBoxes, area: tuple[int, int, int, int], frame: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which boxes lie inside a view; at the frame's own edge a box may touch it.

    Args:
        boxes: ``[K, 4 or more]`` in pixels of the frame.
        area: x1 y1 x2 y2 of the view.
        frame: width and height of the frame.
    """
    margins = _EDGE * np.array([area[2] - area[0], area[3] - area[1]] * 2)
    low, high = np.array(area[:2]) + margins[:2], np.array(area[2:]) - margins[2:]
    low = np.where(np.array(area[:2]) <= 0, -np.inf, low)
    high = np.where(np.array(area[2:]) >= frame, np.inf, high)
    inside: NDArray[np.bool_] = ((boxes[:, :2] >= low) & (boxes[:, 2:4] <= high)).all(1)
    return inside


def overlaps(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Return the intersection over union of each pair of boxes, ``[K, 4 or more]`` and ``[L, 4 or more]``."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    other = np.minimum(first[:, None, 2:4], second[None, :, 2:4])
    common = (other - corner).clip(0).prod(2)
    areas = [(boxes[:, 2:4] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    found: NDArray[np.float64] = common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)
    return found


@dataclass
class _Track:
    """Sightings of one object: number of the frame -> box and score."""

    seen: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """Number of the last frame in which the object was seen."""
        return max(self.seen)


def follow(seen: Sequence[SeenBoxes]) -> list[SeenBoxes]:
    """Keep the objects that are seen for some frames, surely enough in their mean, and fill short gaps.

    Args:
        seen: boxes in each frame, in order of time.

    Returns:
        Boxes of each frame; those in gaps lie between their neighbours, with the lower of their scores.
    """
    tracks: list[_Track] = []
    for number, boxes in enumerate(seen):
        open_ones = [each for each in tracks if number - each.last <= _MISSED + 1]
        free = set(range(len(boxes)))
        if open_ones and len(boxes):
            common = overlaps(np.stack([each.seen[each.last] for each in open_ones]), boxes)
            for track, box in _best_pairs(common):
                open_ones[track].seen[number] = boxes[box]
                free.discard(box)
        tracks += [_Track({number: boxes[box]}) for box in sorted(free)]
    kept: list[list[NDArray[np.float32]]] = [[] for _ in seen]
    for track in tracks:
        if len(track.seen) >= _SHORTEST and np.mean([box[4] for box in track.seen.values()]) >= _SURE:
            for number, box in _filled(track):
                kept[number].append(box)
    return [np.array(boxes, np.float32).reshape(-1, 5) for boxes in kept]


def _best_pairs(common: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows and columns, the largest overlap first, each row and column once."""
    left = common.copy()
    while left.size and left.max() >= _NEXT:
        row, column = (int(index) for index in np.unravel_index(int(left.argmax()), left.shape))
        yield row, column
        left[row] = left[:, column] = 0


def _filled(track: _Track) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the frames of an object from its first sighting to its last, with a box for those in which it is missed."""
    numbers = sorted(track.seen)
    for number, following in zip(numbers, [*numbers[1:], numbers[-1] + 1], strict=True):
        here = track.seen[number]
        yield number, here
        for missed in range(number + 1, following):
            there = track.seen[following]
            share = (missed - number) / (following - number)
            box = here * (1 - share) + there * share
            box[4] = min(here[4], there[4])
            yield missed, box

"""Real disturbances of a camera's frames, and a bundle's and the original models' answers to frames with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import cv2
import numpy as np

from gemel.bundles.known_variables import known_variables
from gemel.bundles.reader import Bundle
from gemel.check.drift.bundle_answers import BundleAnswers
from gemel.frames.frame import Image
from gemel.runtime.decode.results import Result
from gemel.runtime.loop.open_feeds import FeedOptions, open_source

__all__ = ["DISTURBANCES", "Answered", "Disturb", "answer_scenes", "read_frames"]

Disturb = Callable[[Image, np.random.Generator], Image]
"""Function that returns a frame as a camera would give it in another scene."""

_QUALITY = 95
"""JPEG quality of samples."""


@dataclass
class Answered:
    """Answers of one query to the frames of one scene, in the order of the frames."""

    given: list[Result] = field(default_factory=list)
    """Answers of the merged model to live frames, as the box gives them."""
    again: list[Result] = field(default_factory=list)
    """Answers of the merged model to the frames as they were stored."""
    reference: list[Result] = field(default_factory=list)
    """Answers of the original model to the frames as they were stored."""


def _night(power: float) -> Disturb:
    table = (255 * (np.arange(256) / 255) ** power).astype(np.uint8)
    return lambda image, random: np.asarray(cv2.LUT(image, table), np.uint8)


def _snow(spread: float) -> Disturb:
    return lambda image, random: np.clip(image + random.normal(0, spread, image.shape), 0, 255).astype(np.uint8)


def _blur(pixels: float) -> Disturb:
    return lambda image, random: np.asarray(cv2.GaussianBlur(image, (0, 0), pixels), np.uint8)


def _moved(part: float) -> Disturb:
    """Return a function that cuts out the lower right part of a frame, as of a camera that was moved and zoomed."""

    def crop(image: Image, random: np.random.Generator) -> Image:
        height, width = image.shape[:2]
        inner = image[height - int(height * part) :, width - int(width * part) :]
        return np.asarray(cv2.resize(inner, (width, height)), np.uint8)

    return crop


DISTURBANCES: dict[str, Disturb] = {
    "none": lambda image, random: image,
    **{f"night, gamma {power}": _night(power) for power in (2, 3, 4, 5, 6, 7)},
    **{f"snow, noise {spread}": _snow(spread) for spread in (15, 30, 45, 60)},
    **{f"blur, {pixels} pixels": _blur(pixels) for pixels in (2, 3, 4, 5)},
    **{f"moved, {part:.0%} of the frame": _moved(part) for part in (0.8, 0.65, 0.5)},
}
"""Name of a disturbance -> function that applies it. Strengths go from hardly visible to nearly blind."""


def read_frames(bundle: Bundle, count: int) -> dict[str, list[Image]]:
    """Return feed -> up to ``count`` frames, evenly spread over the feed's recording."""
    options, found = FeedOptions({}, known_variables(bundle)), {}
    for name, spec in bundle.manifest.feeds.items():
        source = open_source(name, spec, options)
        with closing(source.open()) as reader:
            images = [load() for _, load in reader]
        places = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
        found[name] = [images[place] for place in places]
    return found


def answer_scenes(
    merged: BundleAnswers, originals: BundleAnswers, count: int, scenes: Sequence[str], told: Callable[[str], None]
) -> dict[tuple[str, str], Answered]:
    """Return (disturbance, query) -> answers.

    Args:
        merged: bundle that a box would run.
        originals: bundle of the original models.
        count: maximum number of frames of each feed.
        scenes: names of disturbances.
        told: function called with the name of each disturbance.
    """
    random = np.random.default_rng(0)
    frames = read_frames(merged.bundle, count)
    found: dict[tuple[str, str], Answered] = {}
    for scene in scenes:
        told(scene)
        disturb = DISTURBANCES[scene]
        for feed, images in frames.items():
            queries = [name for name, query in merged.bundle.manifest.queries.items() if query.feed == feed]
            for image in images:
                live = np.ascontiguousarray(disturb(image, random))
                data = cv2.imencode(".jpg", live, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
                stored = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
                answers = (
                    merged.answer(live, queries),
                    merged.answer(stored, queries),
                    originals.answer(stored, queries),
                )
                for query in queries:
                    answered = found.setdefault((scene, query), Answered())
                    for kept, each in zip((answered.given, answered.again, answered.reference), answers, strict=True):
                        kept.append(each[query])
    return found

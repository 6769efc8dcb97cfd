"""Mixes: frames of a workload's other feeds and still images, on which a query without labels is judged as well.

A camera shows little: one room, one street, one face. A model may answer as before there, and nowhere else. So a query
without labels is also judged, and its model trained, on what the other cameras of the workload show, and on still
images that the workload names. Where a workload has neither, altered frames of the query's own feed stand in: cropped,
mirrored, and with other colours and brightness.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...bundles.manifest import InputSpec
from ...errors import DataError, FeedError
from ...frames.preprocess import resize
from ..document.schema import Query, Workload
from .data_sets import Splits, list_feed, list_stills
from .images import Images, Resized, made_of
from .listing import Listing

__all__ = ["Mixer", "altered"]

_IMAGES = (400, 300, 300)
"""Maximum number of images of a mix for training, choosing and confirming."""
_LEAST = 15
"""Minimum number of frames of a feed, or of stills, that are split into three parts."""
_LONGEST = 640
"""Length in pixels to which the longer side of a frame in a mix is reduced, to keep frames in memory."""
_LEAST_SIDE = 0.6
"""Smallest side of a crop, as a fraction of the frame's side."""

_Picture = NDArray[np.uint8]
"""One frame of a mix, as the bytes of a JPEG file: tens of kilobytes."""


class Mixer:
    """Maker of mixes for the queries of one workload. Each feed is read once, and its frames are kept small.

    Args:
        workload: the workload, for its feeds and stills.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._known: dict[str, tuple[list[_Picture], ...]] = {}

    def of(self, query: Query, own: Splits, spec: InputSpec) -> Splits:
        """Return the mix of a query in three parts, of the same parts of all feeds: apart in time.

        Args:
            query: the query.
            own: the query's own images, which are altered if the workload shows nothing else.
            spec: input size and normalisation of the query's model.

        Raises:
            DataError: the stills cannot be read.
        """
        source = self._workload.feeds[query.feed].source
        # Another feed may be the same recording under another name.
        names = [name for name, feed in self._workload.feeds.items() if feed.source != source]
        sources = [frames for name in names if any(frames := self._feed(name))]
        if self._workload.stills is not None:
            sources.append(self._stills())
        if not sources:
            return Splits(
                *(altered(part, most, seed) for seed, (part, most) in enumerate(zip(own, _IMAGES, strict=True)))
            )
        parts = []
        for part, most in enumerate(_IMAGES):
            pictures = [frame for frames in sources for frame in _spread(frames[part], -(-most // len(sources)))]
            parts.append(made_of(_resized(pictures, spec), len(pictures), spec))
        return Splits(*parts)

    def _feed(self, name: str) -> tuple[list[_Picture], ...]:
        """Return frames of a feed for the three parts; none of a camera, nor of a feed that cannot be read."""
        if name not in self._known:
            try:
                self._known[name] = _read(list_feed(name, self._workload, f"feed {name}"))
            except (DataError, FeedError):
                # A query of this feed says so by itself; the mix of another query can do without.
                self._known[name] = ()
        return self._known[name]

    def _stills(self) -> tuple[list[_Picture], ...]:
        """Return the workload's still images for the three parts."""
        # No feed has this name: names are letters, digits, "-" and "_".
        key = "stills:"
        if key not in self._known:
            listing = list_stills(self._workload)
            self._known[key] = _read(listing)
            if not self._known[key]:
                raise DataError(f"stills: fewer than {_LEAST} images: {len(listing)}; give more, or leave the key out")
        return self._known[key]


def _read(listing: Listing) -> tuple[list[_Picture], ...]:
    """Read frames of a data set for the three parts, as JPEG files in memory; nothing if there are too few frames."""
    if len(listing) < _LEAST:
        return ()
    return tuple(list(part.thinned(most).pictures(_small)) for part, most in zip(listing.split(), _IMAGES, strict=True))


def _small(image: NDArray[np.uint8]) -> _Picture:
    """Return an image as the bytes of a JPEG file, with its longer side at most 640 pixels."""
    factor = _LONGEST / max(image.shape[:2])
    if factor < 1:
        image = np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return np.asarray(content, np.uint8)


def _resized(pictures: list[_Picture], spec: InputSpec) -> Iterator[Resized]:
    """Yield the frames of a mix, resized for a model."""
    for content in pictures:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR)
        assert image is not None
        yield resize(np.asarray(image, np.uint8), spec)


def _spread(frames: list[_Picture], most: int) -> list[_Picture]:
    """Return at most ``most`` frames, evenly spread."""
    return [frames[row] for row in np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)]


def altered(images: Images, most: int, seed: int) -> Images:
    """Return altered copies of some images: cropped, mirrored, with other contrast, brightness and colours.

    Args:
        images: the images, without labels.
        most: maximum number of copies.
        seed: seed of all alterations.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linspace(0, len(images) - 1, min(most, len(images))).long()
    spec, places = images.spec, [images.geometry[row] for row in rows.tolist()]

    def pictures() -> Iterator[Resized]:
        """Yield each altered image with its position in the model's input."""
        for row, place in zip(rows, places, strict=True):
            left, top, right, bottom = place.area
            image = images.pixels[row[None]][0, :, top:bottom, left:right]
            yield _altered(image, generator).permute(1, 2, 0).numpy(), place

    return made_of(pictures(), len(rows), spec)


def _altered(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return an altered copy of one image ``[C, H, W]`` uint8, of the same size."""
    channels, height, width = image.shape
    side, up, left, mirror, contrast, light = torch.rand(6, generator=generator).tolist()
    side = _LEAST_SIDE + (1 - _LEAST_SIDE) * side
    rows, columns = max(1, round(side * height)), max(1, round(side * width))
    top, start = round(up * (height - rows)), round(left * (width - columns))
    crop = image[:, top : top + rows, start : start + columns].float()
    values = F.interpolate(crop[None], (height, width), mode="bilinear", align_corners=False)[0]
    tint = 0.8 + 0.4 * torch.rand(channels, 1, 1, generator=generator)
    values = (values - values.mean()) * (0.6 + 0.8 * contrast) + values.mean() * (0.6 + 0.8 * light)
    found: Tensor = (values * tint).clamp(0, 255).round().to(torch.uint8)
    return found.flip(-1) if mirror < 0.5 else found

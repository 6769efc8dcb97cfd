"""Samples that a merge trains on and is judged by: read once, then kept in the folder of the merge.

A box deletes its oldest samples, and a search that is resumed must see the frames that it was begun with. So the
frames are copied::

    merged/search/samples/*.jpg      the pictures, as the boxes stored them
    merged/search/samples.json       their names by feed, in the order of time; written last
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...frames.frame import Image
from ...runtime.sinks.sample_files import DamagedSampleError, SampleStore, StoredSample, open_samples
from ...workload.data.listing import Listing
from ...workload.document.schema import Workload
from .store import Store

__all__ = ["MergeSamples", "merge_samples"]

_FOLDER, _INDEX = "search/samples", "search/samples.json"
_LEAST = 15
"""Minimum number of samples of a feed that are split into parts for training, choosing and confirming."""
_MOST = 2000
"""Maximum number of samples of a feed that are kept, evenly spread over the time."""
_SIDE = 64
"""Side in pixels of the gray copies by which samples are compared."""
_ALIKE = 4
"""Largest difference, in gray levels of 255, of any pixel of the copies of two near duplicates.

Noise of a camera and of JPEG files stays below in the mean over a pixel of the copy; an object that moves does not."""


@dataclass(frozen=True)
class MergeSamples:
    """Samples of the feeds of a workload that a merge uses."""

    pictures: Mapping[str, tuple[tuple[str, str], ...]]
    """Feed -> name and SHA-256 of each picture, in the order of time."""
    left_out: Mapping[str, int]
    """Reason -> number of samples that are not used."""
    content: Callable[[str], bytes]
    """Function that returns the content of a picture, given its name."""
    kept: bool = False
    """Whether the pictures are in the folder of the merge already."""

    @property
    def digest(self) -> str:
        """Hash of all pictures, by which a search that is resumed knows them."""
        return hashlib.sha256(json.dumps(self.pictures, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def lines(self) -> tuple[str, ...]:
        """Lines of text: the number of samples of each feed, and how many were left out, and why."""
        used = (f"feed {feed}: {len(names)} samples" for feed, names in self.pictures.items())
        return *used, *([f"{_told(self.left_out)} left out"] if self.left_out else [])

    def listings(self, store: Store) -> dict[str, Listing]:
        """Return feed -> list of its pictures in the folder of a merge; copy them there if they are not there yet.

        Args:
            store: folder of the merge.

        Raises:
            InputError: a picture cannot be read or written.
        """
        if not self.kept:
            try:
                for name in (name for names in self.pictures.values() for name, _ in names):
                    store.place({f"{_FOLDER}/{name}": self.content(name)})
            except DamagedSampleError as error:
                raise InputError(f"--samples: {error}; begin anew, into another folder") from error
            index = {"pictures": self.pictures, "left_out": self.left_out}
            store.place({_INDEX: json.dumps(index, indent=1).encode() + b"\n"})
        return {
            feed: Listing(f"samples of feed {feed}", tuple(store.output / _FOLDER / name for name, _ in names))
            for feed, names in self.pictures.items()
        }


def merge_samples(
    where: str, workload: Workload, output: Path, *, since: float = -math.inf, resume: bool = False
) -> MergeSamples:
    """Return the samples for a merge: those that an interrupted merge has kept, otherwise those of a folder or store.

    Args:
        where: path of a folder, or an address such as ``s3://bucket/box7``.
        workload: the workload whose feeds the samples show.
        output: folder of the merge.
        since: Unix time by the boxes' clocks before which samples are left out.
        resume: whether the merge goes on with what the folder ``output`` holds.

    Raises:
        BackendError: the store does not answer, or gives no access.
        InputError: the folder cannot be read, no feed has enough samples, or what was kept is damaged.
        MissingExtraError: the samples are in a store, and fsspec is not installed.
    """
    if resume and (output / _INDEX).is_file():
        return _kept(output)
    store, left = open_samples(where), Counter[str]()
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for feed, samples in _records(store, workload, since, left).items():
        names = [(each.record.image, each.record.sha256) for each in _different(samples, left)]
        if len(names) < _LEAST:
            left[f"of feed {feed}, which takes {_LEAST}"] += len(names)
            continue
        rows = np.linspace(0, len(names) - 1, min(len(names), _MOST)).round().astype(int)
        if len(rows) < len(names):
            left[f"above {_MOST} of feed {feed}"] += len(names) - len(rows)
        found[feed] = tuple(names[row] for row in rows)
    left = +left
    if not found:
        why = f"; {_told(left)} left out" if left else "; there are none"
        raise InputError(f"--samples: {store.shown}: no query's feed has {_LEAST} samples that can be used{why}")
    return MergeSamples(found, dict(left), store.content)


def _records(store: SampleStore, workload: Workload, since: float, left: Counter[str]) -> dict[str, list[StoredSample]]:
    """Return feed -> its samples in the order of time; count those that are damaged or of something else.

    Args:
        store: the samples.
        workload: the workload.
        since: Unix time before which samples are left out.
        left: reason -> number of samples that are left out, which is added to.
    """
    queries: dict[str, set[str]] = {}
    for query in workload.queries:
        queries.setdefault(query.feed, set()).add(query.name)
    found: dict[str, list[StoredSample]] = {feed: [] for feed in queries}
    for name in store.names():
        try:
            sample = store.read(name)
        except DamagedSampleError:
            left["damaged"] += 1
            continue
        record = sample.record
        named = {*record.answers, *record.skipped}
        if record.at < since:
            left["before --since"] += 1
        elif record.feed not in queries:
            left["of a feed without queries here"] += 1
        elif named and not named & queries[record.feed]:
            left["of unknown queries"] += 1
        else:
            found[record.feed].append(sample)
    for samples in found.values():
        samples.sort(key=lambda each: (each.record.at, each.record.run, each.record.frame, each.name))
    return found


def _different(samples: Iterable[StoredSample], left: Counter[str]) -> list[StoredSample]:
    """Return the samples without damaged ones and near duplicates of earlier ones, which are counted.

    Args:
        samples: samples of one feed, in the order of time.
        left: reason -> number of samples that are left out, which is added to.
    """
    found: list[StoredSample] = []
    seen = np.zeros((64, _SIDE * _SIDE), np.int16)
    for sample in samples:
        try:
            small = _gray(sample.image())
        except DamagedSampleError:
            left["damaged"] += 1
            continue
        if len(found) and int(np.abs(seen[: len(found)] - small).max(1).min()) <= _ALIKE:
            left["near duplicates"] += 1
            continue
        if len(found) == len(seen):
            seen = np.concatenate([seen, np.zeros_like(seen)])
        seen[len(found)] = small
        found.append(sample)
    return found


def _gray(image: Image) -> NDArray[np.int16]:
    """Return the pixels of a small gray copy of a frame, ``[4096]``."""
    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.int16).reshape(-1)


def _kept(output: Path) -> MergeSamples:
    """Return the samples that an interrupted merge has kept.

    Raises:
        InputError: they are damaged.
    """
    damaged = f"{output / _INDEX}: damaged; the search cannot be resumed"
    try:
        index: dict[str, Any] = json.loads((output / _INDEX).read_bytes())
        pictures = {
            feed: tuple((str(name), str(digest)) for name, digest in names) for feed, names in index["pictures"].items()
        }
        left = {str(reason): int(count) for reason, count in index["left_out"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(damaged) from error
    for names in pictures.values():
        for name, digest in names:
            path = output / _FOLDER / name
            try:
                whole = hashlib.sha256(path.read_bytes()).hexdigest() == digest
            except OSError:
                whole = False
            if not whole:
                raise InputError(f"{path}: missing or changed; the search cannot be resumed")
    return MergeSamples(pictures, left, lambda name: (output / _FOLDER / name).read_bytes(), kept=True)


def _told(left: Mapping[str, int]) -> str:
    """Return numbers of samples with the reasons for which they are left out, as text."""
    return ", ".join(f"{count} {reason}" for reason, count in left.items())

"""Loading of the images that a query is retrained and evaluated on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ...bundles.manifest import InputSpec
from ...errors import DataError, FeedError, InputError, UnjudgedError
from ...frames.reference import package_file
from ...frames.source import Source, resolve
from ..document.schema import Query, Workload
from .coco import list_coco
from .folders import class_folders, list_classes, list_flat
from .images import Images
from .listing import Listing
from .video import count_frames

__all__ = ["MOST_FRAMES", "Splits", "list_data", "list_feed", "list_stills", "load_data", "read_images"]

_LEAST = 15
"""Minimum number of images of a data set that is split into parts for training, choosing and confirming."""
MOST_FRAMES = (2000, 1000, 1000)
"""Maximum numbers of images that train, choose and confirm, of a data set without labels."""
_ALLOWED = "a folder of images, a folder with a folder for each class, a COCO json, a video, or package:NAME/path"


class Splits(NamedTuple):
    """Images of a query in three parts without a common image; without labels, the parts are apart in time."""

    train: Images
    """Images to retrain the query's model on."""
    choose: Images
    """Images that decide between merges while the search goes on."""
    confirm: Images
    """Images that choose nothing: they say whether the result keeps the query's accuracy."""


def load_data(query: Query, workload: Workload, spec: InputSpec, classes: int | None) -> Splits:
    """Load the images of a query that its model trains on, those that choose, and those that confirm.

    Args:
        query: query of the workload.
        workload: workload, for its feeds and its folder.
        spec: input size and normalisation of the query's model.
        classes: number of the model's classes, the background not counted; None for embeddings.

    Raises:
        DataError: the query has no data and its feed is a camera, or data is missing, cannot be read or does not fit
            the model.
        UnjudgedError: there are too few images.
    """
    lists = list_data(query, workload, classes)
    return Splits(*(part.limited(most).read(spec) for part, most in zip(lists, MOST_FRAMES, strict=True)))


def list_data(query: Query, workload: Workload, classes: int | None) -> tuple[Listing, Listing, Listing]:
    """List the images of a query that its model trains on, those that choose, and those that confirm.

    The images are those of ``data.train`` and ``data.val``, which is halved. A query without data gets frames of its
    feed. Without ``data.val``, images of ``data.train`` choose and confirm, and are not trained on
    (:meth:`Listing.split`). No image is read.

    Args and errors are those of :func:`load_data`.
    """
    given = query.data
    name = f"query {query.name}"
    if given is not None and given.val is not None and given.train is None:
        raise DataError(f"{name}: data.train is missing; with data.val alone there is nothing to train on")
    if given is None or given.train is None:
        train = _of_feed(query, workload)
    else:
        train = _list(given.train, workload.root, query, classes, f"{name}: data.train")
    if given is not None and given.val is not None:
        return train, *_list(given.val, workload.root, query, classes, f"{name}: data.val").halved()
    if len(train) < _LEAST:
        raise UnjudgedError(
            f"{train.what}: fewer than {_LEAST} images: {len(train)}; some choose and some confirm, because"
            " data.val is not given; give a longer recording or more images"
        )
    return train.split()


def read_images(
    folder: Path, spec: InputSpec, what: str, labels: list[str] | None = None, classes: int | None = None
) -> Images:
    """Load all images of a folder, with a label for each image if the folder has a folder for each class.

    Args:
        folder: folder to read.
        spec: input size and normalisation of the model.
        what: name of the query and field, for errors.
        labels: names of the model's classes.
        classes: number of the model's classes; not checked when None.

    Raises:
        DataError: there are no images, one cannot be read, or the folders do not fit (:func:`.list_classes`).
    """
    if not folder.is_dir():
        raise DataError(f"{what}: {folder}: no such folder")
    listing = list_classes(folder, labels, classes, what) if class_folders(folder) else list_flat(folder, what)
    return listing.read(spec)


def _list(reference: str, root: Path, query: Query, classes: int | None, what: str) -> Listing:
    """List the images that ``data.train`` or ``data.val`` of a query refers to: a folder, a COCO file or a video.

    Raises:
        DataError: the reference is not allowed, or its target is missing or does not fit the model.
    """
    path = _located(reference, root, what)
    if path.is_dir():
        return _list_folder(path, query, classes, what)
    if path.suffix.lower() == ".json":
        if query.task != "detection":
            raise DataError(f"{what}: {path}: boxes are for detection; the query's task is {query.task}")
        return list_coco(path, query.labels, classes, what)
    return _list_video(Source(query.feed, "file", str(path)), what)


def _located(reference: str, root: Path, what: str) -> Path:
    """Return the file or folder that a reference to images means.

    Raises:
        DataError: the reference is not allowed, or its target is missing.
    """
    if "://" in reference:
        raise DataError(f"{what}: {reference!r}: not allowed; allowed: {_ALLOWED}")
    if reference.startswith("package:"):
        try:
            path = package_file(reference)
        except InputError as error:
            raise DataError(f"{what}: {error}") from error
    else:
        path = (root / Path(reference).expanduser()).absolute()
    if not path.exists():
        raise DataError(f"{what}: {path}: no such file or folder; allowed: {_ALLOWED}")
    return path


def _list_folder(folder: Path, query: Query, classes: int | None, what: str) -> Listing:
    """List the images of a folder as the task of a query needs: by class, by the folder's COCO file, or without
    labels."""
    if query.task == "classification" and class_folders(folder):
        return list_classes(folder, query.labels, classes, what)
    files = sorted(folder.glob("*.json")) if query.task == "detection" else []
    if len(files) > 1:
        raise DataError(f"{what}: {folder}: {len(files)} json files ({files[0].name}, {files[1].name}); name one")
    return list_coco(files[0], query.labels, classes, what) if files else list_flat(folder, what)


def _list_video(source: Source, what: str) -> Listing:
    """Return a listing of all frames of a video, by frame number.

    Raises:
        DataError: the video has no frames.
    """
    count = count_frames(source, what)
    if not count:
        raise DataError(f"{what}: {source}: there is no frame in it")
    return Listing(what, tuple(range(count)), video=source)


def _of_feed(query: Query, workload: Workload) -> Listing:
    """Return a listing of the frames of a query's feed: a video, or a folder of images.

    Raises:
        DataError: the feed is a camera, whose frames cannot be read again, or the feed cannot be read.
    """
    try:
        return list_feed(query.feed, workload, f"query {query.name}: feed {query.feed}")
    except FeedError as error:
        raise DataError(f"query {query.name}: data is not given, and {error}") from error


def list_feed(name: str, workload: Workload, what: str) -> Listing:
    """Return a listing of the frames of a feed of a workload: a video, or a folder of images.

    Args:
        name: name of the feed.
        workload: the workload.
        what: name of the query and field, for errors.

    Raises:
        DataError: the feed is a camera, whose frames cannot be read again, or has no frames.
        FeedError: the feed cannot be found.
    """
    # The address of a camera may hold a password, so it is neither resolved nor part of a message.
    camera = f"{what}: frames of a camera are not kept; give data.train: {_ALLOWED}"
    text = workload.feeds[name].source
    if "://" in text:
        raise DataError(camera)
    source = resolve(name, text, base=workload.root)
    if source.live:
        raise DataError(camera)
    return list_flat(Path(source.location), what) if source.kind == "folder" else _list_video(source, what)


def list_stills(workload: Workload) -> Listing:
    """Return a listing of a workload's still images, without labels: a folder, or frames of a video.

    Raises:
        DataError: the reference is not allowed, or its target is missing.
    """
    what = "stills"
    path = _located(workload.stills or "", workload.root, what)
    return list_flat(path, what) if path.is_dir() else _list_video(Source(what, "file", str(path)), what)

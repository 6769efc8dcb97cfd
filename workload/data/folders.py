"""Listing of images in folders: a folder for each class, or one folder of images without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import DataError
from ...frames.reader import IMAGE_SUFFIXES
from .listing import Listing

__all__ = ["class_folders", "list_classes", "list_flat"]


def class_folders(folder: Path) -> list[Path]:
    """Return the subfolders of a folder, sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def list_flat(folder: Path, what: str) -> Listing:
    """List the image files in a folder by name, or those in its subfolders if the folder itself has none.

    Raises:
        DataError: neither the folder nor a subfolder has images.
    """
    files = _files(folder) or [file for each in class_folders(folder) for file in _files(each)]
    if not files:
        raise DataError(f"{what}: {folder}: no images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return Listing(what, tuple(files))


def list_classes(folder: Path, labels: Sequence[str] | None, classes: int | None, what: str) -> Listing:
    """List the images in a folder that has a subfolder for each class, with the class of each image.

    The class of a folder is the position of its name in ``labels``. If no folder has the name of a label, or there are
    no labels, the folders in the order of their names are the classes, as in torchvision's ``ImageFolder``.

    Args:
        folder: folder with a subfolder of images for each class.
        labels: names of the model's classes.
        classes: number of the model's classes; not checked when None.
        what: name of the query and field, for errors.

    Raises:
        DataError: a folder has no images, or the folders do not fit the model's classes.
    """
    folders = class_folders(folder)
    if stray := _files(folder):
        raise DataError(f"{what}: {stray[0]} lies beside folders of classes; put it into one of them")
    numbers = _numbers([each.name for each in folders], labels, classes, f"{what}: {folder}")
    found: list[tuple[float, int, Path]] = []
    for each, number in zip(folders, numbers, strict=True):
        files = _files(each)
        if not files:
            raise DataError(f"{what}: {each}: a class without images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
        # Interleave the classes, so that the first images are a fair sample of all.
        found += [((rank + 0.5) / len(files), number, file) for rank, file in enumerate(files)]
    found.sort()
    return Listing(what, tuple(file for _, _, file in found), labels=tuple(number for _, number, _ in found))


def _numbers(names: list[str], labels: Sequence[str] | None, classes: int | None, where: str) -> list[int]:
    """Return name of each class folder of images -> number of its class.

    Raises:
        DataError: the folders do not fit the query's labels or the model's number of classes.
    """
    known = [name for name in names if name in (labels or ())]
    if labels and known:
        if len(known) < len(names):
            other = next(name for name in names if name not in labels)
            raise DataError(f"{where}: folder {other!r} is none of the query's labels: {', '.join(labels)}")
        numbers = [labels.index(name) for name in names]
        if classes is not None and max(numbers) >= classes:
            raise DataError(
                f"{where}: folder {labels[max(numbers)]!r} is label {max(numbers)} of the query, counted from 0;"
                f" its model has {classes} classes"
            )
        return numbers
    if classes is not None and len(names) != classes:
        # With a folder missing, every later folder would be taken for the class before it.
        hint = "call them as the query's labels are" if labels else "give the query labels, which folders are called by"
        raise DataError(f"{where}: {len(names)} folders of classes for a model with {classes} classes; {hint}")
    return list(range(len(names)))


def _files(folder: Path) -> list[Path]:
    """Return the image files in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())

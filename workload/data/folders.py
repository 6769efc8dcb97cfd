"""Folders of images: one for each class, or one of images without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import DataError
from ...frames.reader import IMAGE_SUFFIXES
from .listing import Listing

__all__ = ["class_folders", "list_classes", "list_flat"]


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder by name, but for hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def list_flat(folder: Path, what: str) -> Listing:
    """Images by name, as they lie in a folder or in the folders in it.

    Raises:
        DataError: there are none.
    """
    files = _files(folder) or [file for each in class_folders(folder) for file in _files(each)]
    if not files:
        raise DataError(f"{what}: {folder}: no images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return Listing(what, tuple(files))


def list_classes(folder: Path, labels: Sequence[str] | None, classes: int | None, what: str) -> Listing:
    """Images with the class that their folder stands for.

    A folder's class is the position of its name in ``labels``. Where no folder is called as a label is, or there are
    no labels, folders stand for the classes in the order of their names, as in torchvision's ``ImageFolder``.

    Args:
        folder: has a folder of images for each class.
        labels: names of the model's classes.
        classes: outputs of the model; not checked when None.
        what: named in errors.

    Raises:
        DataError: a folder without images, or folders that do not fit the model's classes.
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
        # Classes take turns, so that the first thousand images are a fair sample of all.
        found += [((rank + 0.5) / len(files), number, file) for rank, file in enumerate(files)]
    found.sort()
    return Listing(what, tuple(file for _, _, file in found), labels=tuple(number for _, number, _ in found))


def _numbers(names: list[str], labels: Sequence[str] | None, classes: int | None, where: str) -> list[int]:
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
        # With a class missing, every later one would be taken for its neighbour.
        hint = "call them as the query's labels are" if labels else "give the query labels, which folders are called by"
        raise DataError(f"{where}: {len(names)} folders of classes for a model with {classes} classes; {hint}")
    return list(range(len(names)))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())

"""Writing of one bundle for each box, with the queries that are placed on the box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..bundles.part_bundle import BundlePart, check_parts, write_part
from ..bundles.reader import Bundle
from ..errors import InputError
from .boxes_file import BoxSettings

__all__ = ["check_split", "split_bundles"]


def check_split(folder: Path, bundles: Sequence[Bundle], boxes: Sequence[BoxSettings]) -> None:
    """Check before the search that bundles may be written into a folder, and that all bundles could be one.

    Raises:
        InputError: the folder is a file, a bundle would be replaced by a part of itself, or two bundles cannot be one.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--split: {folder} is not a folder")
    for box in boxes:
        for bundle in bundles:
            if (folder / box.name).resolve() == bundle.path.resolve():
                raise InputError(f"--split: {bundle.path} would be replaced by the bundle of box {box.name}")
    check_parts([BundlePart(bundle, tuple(bundle.manifest.queries)) for bundle in bundles])


def split_bundles(
    folder: Path, bundles: Sequence[Bundle], boxes: Sequence[BoxSettings], members: Sequence[Sequence[str]]
) -> Iterator[Bundle]:
    """Write the bundle of each box that has queries, and yield it.

    The memory budget of a bundle is the memory of its box.

    Args:
        folder: folder for the bundles; each gets the name of its box.
        bundles: bundles that the queries are taken from.
        boxes: the boxes.
        members: names of the queries on each box.

    Raises:
        BundleError: a bundle is damaged or cannot be written.
    """
    for box, names in zip(boxes, members, strict=True):
        parts = [
            BundlePart(bundle, chosen)
            for bundle in bundles
            if (chosen := tuple(name for name in bundle.manifest.queries if name in names))
        ]
        if parts:
            yield write_part(folder / box.name, parts, box.memory)

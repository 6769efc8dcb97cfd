"""What the box of the drill answered: read from its results, and compared with the original models and the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from loop_models import CAMERAS, LENGTH, QUERIES
from loop_timeline import Answer

from gemel.bundles.reader import open_bundle
from gemel.check.drift.bundle_answers import BundleAnswers
from gemel.frames.frame import Image
from gemel.frames.source import resolve
from gemel.runtime.decode.results import Class, Result

__all__ = ["LiveAnswers", "answers_to", "equal_answers", "frames_of", "label_of"]


class LiveAnswers:
    """Lines of a box's results, read while they are written.

    Args:
        path: file of ``gemel-run --results``, which may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        self.rows: dict[str, list[tuple[float, int, str]]] = {query: [] for query in QUERIES}
        """Query -> Unix time, index of the frame, and label of each answer."""

    def read(self) -> None:
        """Read what is new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._at += len(line)
                row = json.loads(line)
                self.rows[row["query"]].append((row["at"], row["frame"], row["result"][0]["label"]))

    def frame(self, query: str) -> int:
        """Return the index of the newest frame that a query has answered; -1 without one."""
        self.read()
        return max((frame for _, frame, _ in self.rows[query][-5:]), default=-1)

    def judged(
        self,
        begun: float,
        night: Mapping[str, int],
        originals: Mapping[tuple[str, str], Sequence[str]],
        truth: Mapping[str, Sequence[str]],
    ) -> dict[str, list[Answer]]:
        """Return query -> its answers, compared with those of the original model and with the truth.

        Args:
            begun: Unix time that is 0 on the timeline.
            night: camera -> index of its first dark frame; cameras that stay bright are left out.
            originals: query and scene -> label that the original model gives each frame of the camera's video.
            truth: query -> true label of each frame.
        """
        self.read()
        found: dict[str, list[Answer]] = {}
        for query, rows in self.rows.items():
            first = night.get(QUERIES[query].feed)
            for at, frame, label in rows:
                scene = "night" if first is not None and frame >= first else "day"
                place = frame % LENGTH
                agrees, right = label == originals[query, scene][place], label == truth[query][place]
                found.setdefault(query, []).append(Answer(at - begun, frame, agrees, right))
        return found


def label_of(result: Result) -> str:
    """Return the label of a classification."""
    assert isinstance(result, tuple) and isinstance(result[0], Class)
    return result[0].label


def frames_of(video: Path) -> list[Image]:
    """Return all frames of a video, as a box decodes them."""
    with closing(resolve("drill", str(video)).open()) as reader:
        return [np.asarray(load(), np.uint8) for _, load in reader]


def answers_to(bundle: Path, frames: Mapping[str, Sequence[Image]]) -> dict[str, list[Result]]:
    """Return query -> a bundle's answers to frames of its camera, with scores to the last bit.

    Args:
        bundle: folder of the bundle.
        frames: camera -> frames.
    """
    found: dict[str, list[Result]] = {query: [] for query in QUERIES}
    with BundleAnswers(open_bundle(bundle), threads=1) as device:
        for camera in CAMERAS:
            queries = [query for query, spec in QUERIES.items() if spec.feed == camera]
            for image in frames[camera]:
                for query, result in device.answer(image, queries).items():
                    found[query].append(result)
    return found


def equal_answers(before: Path, after: Path, frames: Mapping[str, Sequence[Image]]) -> dict[str, tuple[int, int]]:
    """Return query -> number of frames to which two bundles give the same answer, bit for bit, and of all frames."""
    one, other = answers_to(before, frames), answers_to(after, frames)
    return {
        query: (sum(a == b for a, b in zip(one[query], other[query], strict=True)), len(one[query])) for query in one
    }

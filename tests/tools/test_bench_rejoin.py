"""Benchmark of going on from a merge: the samples that it writes, and the row of its table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from bench_rejoin import Effort, _row, write_samples

from gemel.runtime.sinks.sample_files import open_samples


def test_one_feed_shows_another_scene(tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / "seen" / f"{number}.png"), np.full((32, 32, 3), 60 + 60 * number, np.uint8))
    write_samples(tmp_path / "seen", "night, gamma 3", tmp_path / "samples")
    store = open_samples(str(tmp_path / "samples"))
    samples = [store.read(name) for name in store.names()]
    light = {feed: [s.image().mean() for s in samples if s.record.feed == feed] for feed in ("yard", "gate")}
    assert sorted(round(float(value)) for value in light["yard"]) == [60, 120, 180]
    assert all(dark < bright for dark, bright in zip(light["gate"], light["yard"], strict=True))


def test_a_row_has_the_part_of_the_images() -> None:
    def effort(trained: int, before: dict[str, float]) -> Effort:
        query: Any = SimpleNamespace(samples=SimpleNamespace(value=0.96), relative=0.98)
        report: Any = SimpleNamespace(queries={"deep": query}, layer_saving=0.5)
        return Effort(report, trained, 10 * trained, 2.0, before)

    row = _row("night", effort(100, {"deep": 0.8}), effort(400, {}), same=True)
    assert row.startswith("| night | 0.800 | 0.960 | 0.980 | yes | 50.0% | 100 |")
    assert row.endswith("| 400 | 4,000 | 2 | 0.25 |")

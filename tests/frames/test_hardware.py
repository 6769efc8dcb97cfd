"""Hardware decoding where there is none: ``auto`` falls back with one line, a device that is named is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import write_video

from gemel.errors import FeedError
from gemel.frames import hardware
from gemel.frames.settings import ReadSettings
from gemel.frames.source import resolve


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_reason", lambda name: f"there is no {name}")
    hardware._find_device.cache_clear()


def count(path: Path, settings: ReadSettings) -> int:
    return sum(1 for _ in resolve("gate", str(path), settings=settings).open())


def test_auto_falls_back_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.mp4")
    for _ in range(3):
        assert count(path, ReadSettings(hardware="auto")) == 12
    assert [record.getMessage() for record in caplog.records] == [
        "hardware: auto: feeds are decoded on the processor (cuda: there is no cuda; vaapi: there is no vaapi)"
    ]


@pytest.mark.parametrize("name", ["cuda", "vaapi"])
def test_a_device_that_is_not_there(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(FeedError, match=rf"feed 'gate': cannot open .*: hardware: {name} cannot decode here: there is"):
        resolve("gate", str(path), settings=ReadSettings(hardware=name)).probe()  # type: ignore[arg-type]


def test_v4l2_without_a_device(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(FeedError, match=r"feed 'gate': cannot open .*v4l2"):
        resolve("gate", str(path), settings=ReadSettings(hardware="v4l2")).probe()

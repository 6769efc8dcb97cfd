"""RTSP cameras of many kinds: codecs, groups of pictures, sound, sizes that change, passwords, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from cameras import RtspCamera, Sending, Unit, encoded
from take_frames import fails, watch

from gemel.frames import stream_decoder
from gemel.frames.frame import Frame
from gemel.runtime.feeds import Feed

FAST = Sending(fps=60)
H265 = {"codec": "libx265", "options": "x265-params=log-level=none:bframes=0:keyint=10:repeat-headers=1"}


def delivers(count: int) -> Callable[[Feed, list[Frame]], bool]:
    return lambda feed, frames: feed.delivered >= count and bool(frames)


@pytest.mark.parametrize(
    ("units", "camera"),
    [
        (encoded(60, **H265), {"codec": "H265"}),
        (encoded(60, gop=60), {}),
        (encoded(60), {"tracks": ("video", "audio")}),
        (encoded(60), {"tracks": ("audio", "video")}),
    ],
    ids=["H.265", "a key frame a second", "with sound", "sound first"],
)
def test_a_camera(units: tuple[Unit, ...], camera: dict[str, Any]) -> None:
    with RtspCamera(units, FAST, **camera) as server:
        feed, frames = watch(server.url, delivers(40))
    assert (feed.counts.restarts, feed.error) == (0, None)
    assert frames[-1].image.shape == (144, 176, 3)


def test_a_camera_without_key_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some cameras refresh a column of each picture instead; the first picture alone is a key frame."""
    monkeypatch.setattr(stream_decoder, "_HELD", 40)
    units = encoded(300, gop=300, options="bf=0;intra-refresh=1")
    with RtspCamera(units, Sending(fps=60, begin=40)) as server:
        feed, _ = watch(server.url, delivers(20))
    assert feed.counts.restarts == 0


def test_a_size_that_changes() -> None:
    units = encoded(20, options="bf=0;x264-params=repeat-headers=1")
    units += encoded(20, size=(320, 240), options="bf=0;x264-params=repeat-headers=1")
    with RtspCamera(units, FAST) as server:
        found: set[tuple[int, ...]] = set()

        def both(feed: Feed, frames: list[Frame]) -> bool:
            found.update(frame.image.shape for frame in frames)
            return feed.delivered >= 100 and len(found) == 2

        feed, _ = watch(server.url, both)
    assert found == {(144, 176, 3), (240, 320, 3)}
    assert feed.counts.restarts == 0


def test_sound_alone(caplog: pytest.LogCaptureFixture) -> None:
    with RtspCamera(encoded(10), FAST, tracks=("audio",)) as server:
        feed, frames = watch(server.url, fails)
    assert not frames and feed.error is not None
    assert "there is no video stream in it" in feed.error
    assert len(caplog.messages) == 1


def test_an_address_without_a_video(caplog: pytest.LogCaptureFixture) -> None:
    with RtspCamera(encoded(10), FAST, path="/other") as server:
        feed, _ = watch(f"rtsp://127.0.0.1:{server.port}/live", fails)
    assert feed.error is not None and "404" in feed.error
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("user", ["", "admin:@", "admin:p@ssw0rd@"])
def test_a_password_that_is_not_right(user: str, caplog: pytest.LogCaptureFixture) -> None:
    with RtspCamera(encoded(10), FAST, login="admin:an0ther") as server:
        feed, _ = watch(server.url.replace("//", f"//{user}"), fails)
    assert feed.error is not None and "401" in feed.error
    (line,) = caplog.messages
    assert re.match(rf"feed gate: cannot open rtsp://127\.0\.0\.1:{server.port}: ", line)
    assert "ssw0rd" not in line


@pytest.mark.parametrize(
    ("written", "meant"), [("p%40ss%2Fw0rd", "p@ss/w0rd"), ("p@ssw0rd", "p@ssw0rd")], ids=["escaped", "not escaped"]
)
def test_a_password_with_an_at_sign(written: str, meant: str) -> None:
    with RtspCamera(encoded(10), FAST, login=f"admin:{meant}") as server:
        watch(server.url.replace("//", f"//admin:{written}@"), delivers(3))

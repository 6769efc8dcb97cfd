"""Feeds of cameras on the loopback: RTSP over TCP and UDP, MJPEG and snapshots over HTTP, and how they fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from threading import Condition
from typing import Any

import pytest
from cameras import HttpCamera, RtspCamera, Sending, encoded, jpeg
from take_frames import LONG_S, take_until

from gemel.frames.frame import Frame
from gemel.frames.settings import ReadSettings
from gemel.frames.source import resolve
from gemel.frames.stream_decoder import StreamDecoder
from gemel.runtime.feeds import Backoff, Feed

SOON = Backoff(first=0.01, limit=0.04)
FAST = Sending(fps=50)


def open_feed(url: str, *, fps: float | None = None, **settings: Any) -> Feed:
    source = resolve("gate", url, fps=fps, settings=ReadSettings(**settings))
    return Feed("gate", source, fps=fps, backoff=SOON)


def at_least(count: int) -> Callable[[list[Frame]], bool]:
    return lambda frames: len(frames) >= count


class TestRtsp:
    @pytest.mark.parametrize("offered", ["tcp", "udp"])
    def test_auto_takes_what_the_camera_offers(self, offered: str) -> None:
        with RtspCamera(encoded(50), FAST, transports=(offered,)) as camera:
            feed = open_feed(camera.url)
            frames = take_until(feed, at_least(20))
        assert (feed.counts.restarts, feed.error, feed.state) == (0, None, "running")
        assert all(a.time < b.time and a.arrived <= b.arrived for a, b in pairwise(frames))
        assert abs(frames[-1].at - time.time()) < LONG_S

    def test_a_transport_that_the_camera_refuses(self) -> None:
        with RtspCamera(encoded(50), FAST, transports=("tcp",)) as camera:
            feed = open_feed(camera.url, transport="udp")
            take_until(feed, lambda frames: feed.counts.restarts >= 1)
        assert feed.error == f"cannot open rtsp://127.0.0.1:{camera.port}: the camera does not offer RTSP over udp"
        assert feed.state == "reconnecting"

    def test_a_password(self, caplog: pytest.LogCaptureFixture) -> None:
        with RtspCamera(encoded(50), FAST, login="admin:s3cr3t") as camera:
            wrong = open_feed(camera.url.replace("//", "//admin:wr0ng@"))
            take_until(wrong, lambda frames: wrong.counts.restarts >= 2)
            right = open_feed(camera.url.replace("//", "//admin:s3cr3t@"))
            take_until(right, at_least(3))
        assert "401" in (wrong.error or "")
        assert "wr0ng" not in caplog.text and "admin" not in caplog.text
        # Once, not at every attempt.
        assert caplog.text.count("401") == 1

    def test_a_silent_camera(self, caplog: pytest.LogCaptureFixture) -> None:
        with RtspCamera(encoded(50), Sending(fps=50, silent_after=150)) as camera:
            feed = open_feed(camera.url, timeout_s=0.5)
            take_until(feed, lambda frames: camera.opened >= 2 and feed.state == "running")
        assert "feed gate: no picture for 0.5 s; trying again in 0.0 s" in caplog.text
        assert "feed gate: pictures again after" in caplog.text

    def test_a_camera_that_gives_pictures_seldom(self) -> None:
        """A picture a second, with a timeout of 0.7 s: the timeout grows until the camera is not torn down any more."""
        with RtspCamera(encoded(50), Sending(fps=1)) as camera:
            feed = open_feed(camera.url, timeout_s=0.7)
            take_until(feed, lambda frames: len(frames) >= 2 and frames[-1].time - frames[-2].time > 0.9)
            assert camera.opened <= 4

    def test_a_camera_that_comes_later(self, caplog: pytest.LogCaptureFixture) -> None:
        with RtspCamera(encoded(50), FAST) as first:
            port = first.port
        feed = open_feed(f"rtsp://127.0.0.1:{port}/live")
        feed.start(Condition())
        end = time.monotonic() + LONG_S
        while not feed.counts.restarts:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert f"feed gate: cannot open rtsp://127.0.0.1:{port}: Connection refused; trying again" in caplog.text
        with RtspCamera(encoded(50), FAST, port=port):
            while not feed.delivered:
                assert time.monotonic() < end
                time.sleep(0.01)
            feed.stop()
            feed.join(LONG_S)
        assert feed.state == "running"

    @pytest.mark.parametrize("part", [0, 1])
    def test_lost_packets_of_udp(self, part: int) -> None:
        """Every tenth picture loses a part; nothing is delivered from there to the next key frame."""
        sending = Sending(fps=50, lost=lambda picture, packet: picture % 10 == 4 and packet == part)
        with RtspCamera(encoded(50, gop=10), sending, transports=("udp",)) as camera:
            feed = open_feed(camera.url)
            take_until(feed, lambda frames: feed.delivered >= 24)
        assert feed.counts.withheld >= feed.delivered // 3
        assert feed.counts.corrupt <= feed.delivered // 2

    def test_lost_pictures_of_udp(self) -> None:
        sending = Sending(fps=50, lost=lambda picture, packet: picture % 10 == 4)
        with RtspCamera(encoded(50, gop=10), sending, transports=("udp",)) as camera:
            feed = open_feed(camera.url)
            take_until(feed, lambda frames: feed.delivered >= 24)
        assert feed.counts.withheld >= feed.delivered // 2

    def test_joined_between_key_frames(self) -> None:
        with RtspCamera(encoded(50, gop=10), Sending(fps=50, begin=3)) as camera:
            feed = open_feed(camera.url)
            take_until(feed, at_least(10))
        assert (feed.counts.corrupt, feed.counts.withheld) == (0, 7)

    @pytest.mark.parametrize("jump", [5000.0, -5000.0, -1.5])
    def test_a_jump_of_the_cameras_clock(self, jump: float) -> None:
        sending = Sending(fps=50, stamp=lambda i: 6000 + i / 50 + (jump if i >= 30 else 0))
        with RtspCamera(encoded(50), sending) as camera:
            feed = open_feed(camera.url)
            frames = take_until(feed, lambda frames: feed.delivered >= 60)
        assert feed.counts.restarts == 0
        assert frames[-1].time < LONG_S
        assert feed.lag_ms < LONG_S * 1e3


class TestBehind:
    """A decoder that is slower than the camera."""

    @pytest.fixture(autouse=True)
    def slow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decode = StreamDecoder.decode

        def slowly(self: StreamDecoder, packet: Any) -> list[Any]:
            found = decode(self, packet)
            time.sleep(0.1 * len(found))
            return found

        monkeypatch.setattr(StreamDecoder, "decode", slowly)

    def test_rtsp(self, caplog: pytest.LogCaptureFixture) -> None:
        with RtspCamera(encoded(100, gop=10), Sending(fps=20)) as camera:
            feed = open_feed(camera.url)
            frames = take_until(feed, lambda frames: feed.counts.behind >= 20 and bool(frames))
            behind = feed.counts.behind
        assert behind >= 20
        assert "pictures were left out, because they cannot be decoded as fast as the camera sends them" in caplog.text
        # Media time keeps up with the clock, instead of falling behind by half.
        passed = frames[-1].arrived - frames[0].arrived
        assert frames[-1].time - frames[0].time > 0.7 * passed
        assert feed.lag_ms > 50

    def test_http(self) -> None:
        with HttpCamera([jpeg(i) for i in range(5)], Sending(fps=20)) as camera:
            feed = open_feed(f"{camera.url}/mjpeg")
            take_until(feed, lambda frames: feed.counts.behind >= 10)


class TestHttp:
    def test_frames_have_the_time_of_arrival(self) -> None:
        with HttpCamera([jpeg(i) for i in range(5)], Sending(fps=10)) as camera:
            feed = open_feed(f"{camera.url}/mjpeg", fps=10)
            frames = take_until(feed, at_least(12))
        # FFmpeg's made-up clock of 25 pictures per second would say 0.4 s, and leave out every other picture.
        assert frames[-1].time - frames[0].time > 0.9
        assert feed.counts.left_out <= feed.delivered // 2

    def test_a_snapshot_is_no_restart(self, caplog: pytest.LogCaptureFixture) -> None:
        with HttpCamera([jpeg(i) for i in range(5)]) as camera:
            feed = open_feed(f"{camera.url}/snapshot", fps=20)
            frames = take_until(feed, at_least(6))
            asked = len(camera.asked)
        assert (feed.counts.restarts, feed.error) == (0, None)
        assert not caplog.text
        assert frames[-1].time - frames[0].time > 0.2
        assert asked <= 12

    def test_parts_that_are_cut_off_are_left_out(self) -> None:
        whole = jpeg(1)
        with HttpCamera([whole, whole[: len(whole) // 2], b"junk" * 1000], FAST) as camera:
            feed = open_feed(f"{camera.url}/mjpeg")
            take_until(feed, lambda frames: feed.delivered >= 10)
        assert feed.counts.corrupt >= 2 * (feed.delivered - 2)
        assert feed.counts.restarts == 0

    def test_the_query_of_an_address_is_not_shown(self, caplog: pytest.LogCaptureFixture) -> None:
        with HttpCamera([jpeg()]) as camera:
            feed = open_feed(f"{camera.url}/cgi?usr=admin&pwd=s3cr3t")
            take_until(feed, lambda frames: feed.counts.restarts >= 1)
        assert "404" in caplog.text
        assert "s3cr3t" not in caplog.text + (feed.error or "")

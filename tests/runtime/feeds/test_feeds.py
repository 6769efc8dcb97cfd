"""Feeds of files, folders, cameras and streams: frames, times, restarts and refusals."""

from __future__ import annotations

import http.server
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Condition, Event
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from take_frames import LONG_S, drain, take_until

from gemel.errors import FeedError, InputError
from gemel.frames.reader import Picture
from gemel.frames.reference import is_local_file, package_file
from gemel.frames.source import resolve
from gemel.runtime.feeds import Backoff, Feed
from gemel.runtime.feeds.pacing import Decimator, Timeline

SOON = Backoff(first=0.001, limit=0.004)


def write_video(path: Path, frames: int = 30, *, fps: int = 30, codec: str = "mpeg4", size: int = 96) -> Path:
    """Write a video whose frame i is grey of brightness 4 * i, with noise so that frames are not tiny."""
    noise = np.random.default_rng(0).integers(-2, 3, (size, size, 3))
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            image = np.clip(4 * i % 256 + noise, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def truncate(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def video_feed(path: Path, *, fps: float | None = None, loop: bool = False) -> Feed:
    return Feed("yard", resolve("yard", str(path), fps=fps), fps=fps, loop=loop, backoff=SOON)


class FakeReader:
    def __init__(self, script: Callable[[], Iterator[Picture]], *, finite: bool) -> None:
        self._script = script
        self.finite = finite
        self.period = 0.1
        self.corrupt = self.withheld = self.behind = 0
        self.clocked = False
        self.again_s = self.captured = None
        self.closed = False

    def __iter__(self) -> Iterator[Picture]:
        return self._script()

    def close(self) -> None:
        self.closed = True


class FakeCamera:
    """A camera that follows one script for each opening: pictures, then an end or a failure."""

    live = True

    def __init__(self, *scripts: Callable[[], Iterator[Picture]] | Exception) -> None:
        self.scripts = list(scripts)
        self.readers: list[FakeReader] = []

    def open(self, patience: float = 1.0) -> FakeReader:
        script = self.scripts.pop(0) if self.scripts else FeedError("nobody answers")
        if isinstance(script, Exception):
            raise script
        self.readers.append(FakeReader(script, finite=False))
        return self.readers[-1]


def pictures(count: int, failure: Exception | None = None, *, start: float = 0.0) -> Iterator[Picture]:
    for i in range(count):
        yield start + i / 10, lambda i=i: np.full((4, 6, 3), i, np.uint8)  # type: ignore[misc]
    if failure is not None:
        raise failure


class TestResolve:
    @pytest.mark.parametrize(
        "source",
        [
            "",
            "missing.mp4",
            "gopher://host/x",
            "file:///etc/passwd",
            "package:nothing_here/a.mp4",
            "a\0",
        ],
    )
    def test_refused_with_feed_and_what_is_allowed(self, source: str) -> None:
        with pytest.raises(FeedError, match=r"feed 'yard': .*(allowed|not installed)"):
            resolve("yard", source)

    def test_kinds(self, tmp_path: Path) -> None:
        write_video(tmp_path / "a.mp4", 2)
        assert resolve("yard", "a.mp4", base=tmp_path).kind == "file"
        assert resolve("yard", "/dev/null").kind == "device"
        for url in ("rtsp://camera/1", "http://host/a.mjpg"):
            source = resolve("yard", url)
            assert (source.kind, source.live, source.location) == ("stream", True, url)

    def test_local_files(self) -> None:
        assert is_local_file("a/b.mp4")
        assert not any(map(is_local_file, ("rtsp://camera", "package:a/b.mp4", "/dev/video0")))

    def test_passwords_stay_out_of_messages(self) -> None:
        source = resolve("yard", "rtsp://admin:secret@127.0.0.1:1/x")
        assert "secret" not in str(source)
        with pytest.raises(FeedError) as caught:
            source.probe()
        assert "secret" not in str(caught.value)
        assert "127.0.0.1" in str(caught.value)

    def test_folder_without_images(self, tmp_path: Path) -> None:
        with pytest.raises(FeedError, match="folder without images"):
            resolve("yard", str(tmp_path))


class TestPackageFile:
    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "gemel_fake_package"
        (folder / "data").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
        (folder / "data" / "a.mp4").write_bytes(b"x")
        (tmp_path / "outside.mp4").write_bytes(b"x")
        monkeypatch.syspath_prepend(tmp_path)
        return folder

    def test_found_without_importing(self, package: Path) -> None:
        assert package_file("package:gemel_fake_package/data/a.mp4") == package / "data" / "a.mp4"
        assert resolve("yard", "package:gemel_fake_package/data/a.mp4").kind == "file"
        assert "gemel_fake_package" not in sys.modules

    @pytest.mark.parametrize(
        "path",
        ["../outside.mp4", "data/../../outside.mp4", "/etc/passwd", "", "..", "data\\..\\..\\outside.mp4", "data/a\0"],
    )
    def test_leaving_the_package_is_refused(self, package: Path, path: str) -> None:
        with pytest.raises(InputError, match="stays inside the package"):
            package_file(f"package:gemel_fake_package/{path}")

    def test_names_that_are_no_package(self, package: Path) -> None:
        for name in ("..", "a.b", "", "a-b"):
            with pytest.raises(InputError, match="expected package:NAME"):
                package_file(f"package:{name}/a.mp4")

    def test_missing_file_and_package(self, package: Path) -> None:
        with pytest.raises(FeedError, match=r"feed 'yard': .*has no file 'b.mp4'"):
            resolve("yard", "package:gemel_fake_package/b.mp4")
        with pytest.raises(FeedError, match="'nothing_here' is not installed"):
            resolve("yard", "package:nothing_here/b.mp4")


class TestVideo:
    def test_every_frame_in_order(self, tmp_path: Path) -> None:
        frames = drain(video_feed(write_video(tmp_path / "a.mp4", 30)))
        assert [frame.index for frame in frames] == list(range(30))
        assert [frame.time for frame in frames] == pytest.approx([i / 30 for i in range(30)], abs=1e-3)
        assert [float(frame.image.mean()) for frame in frames] == pytest.approx([4 * i for i in range(30)], abs=8)
        assert frames[0].image.shape == (96, 96, 3)
        assert frames[0].image.dtype == np.uint8
        assert not frames[0].image.flags.writeable

    def test_decimation(self, tmp_path: Path) -> None:
        frames = drain(video_feed(write_video(tmp_path / "a.mp4", 30), fps=10))
        assert [frame.time for frame in frames] == pytest.approx([i / 10 for i in range(10)], abs=1e-3)
        assert [frame.index for frame in frames] == list(range(10))

    def test_loop_goes_on_in_time(self, tmp_path: Path) -> None:
        feed = video_feed(write_video(tmp_path / "a.mp4", 10), loop=True)
        frames = drain(feed, limit=25)
        assert [frame.time for frame in frames] == pytest.approx([i / 30 for i in range(25)], abs=2e-3)
        assert (feed.delivered, feed.counts.restarts, feed.error) == (25, 0, None)

    def test_live_recording_ends_normally(self, tmp_path: Path) -> None:
        feed = video_feed(write_video(tmp_path / "a.mp4", 6))
        frames = drain(feed, live=True)
        assert frames[-1].index == 5
        assert (feed.delivered, feed.error) == (6, None)

    def test_display_rotation(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "a.mp4", 3)
        data = bytearray(path.read_bytes())
        matrix = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8
        data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 96 << 16, 0, 1 << 30)
        path.write_bytes(data)
        capture = cv2.VideoCapture(str(path))
        expected = capture.read()[1]
        capture.release()
        difference = np.abs(drain(video_feed(path))[0].image.astype(int) - expected)
        assert difference.mean() < 1

    @pytest.mark.parametrize("content", [b"", b"not a video" * 500])
    def test_unreadable(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "a.mp4"
        path.write_bytes(content)
        with pytest.raises(FeedError, match="feed 'yard': cannot open"):
            resolve("yard", str(path)).probe()
        for loop in (False, True):
            feed = video_feed(path, loop=loop)
            assert drain(feed) == []
            assert feed.error is not None
            assert "cannot open" in feed.error

    def test_sound_only(self, tmp_path: Path) -> None:
        path = tmp_path / "a.wav"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            sound.sample_rate = 8000
            container.mux(stream.encode(sound))
        with pytest.raises(FeedError, match="no video stream"):
            resolve("yard", str(path)).probe()

    @pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
    def test_truncated_in_the_middle(self, tmp_path: Path, name: str) -> None:
        path = truncate(write_video(tmp_path / name, 90), 0.5)
        feed = video_feed(path)
        assert 0 < len(drain(feed)) < 80
        assert feed.error is not None
        assert "truncated" in feed.error

    @pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.ts"])
    def test_whole_is_not_called_truncated(self, tmp_path: Path, name: str) -> None:
        feed = video_feed(write_video(tmp_path / name, 90, codec="mpeg4" if name != "a.ts" else "mpeg2video"))
        assert len(drain(feed)) == 90
        assert feed.error is None

    def test_truncated_loop_is_restarted(self, tmp_path: Path) -> None:
        feed = video_feed(truncate(write_video(tmp_path / "a.mp4", 90), 0.5), loop=True)
        frames = drain(feed, limit=100)
        assert len(frames) == 100
        assert feed.counts.restarts >= 1
        times = [frame.time for frame in frames]
        assert times == sorted(set(times))

    def test_corrupt_frames_are_counted_and_left_out(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "a.avi", 60)
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 2000] = np.random.default_rng(1).bytes(2000)
        path.write_bytes(data)
        feed = video_feed(path)
        frames = drain(feed)
        assert feed.counts.corrupt > 0
        assert 30 < len(frames) < 60
        assert feed.error is None


class TestFolder:
    def test_sorted_and_corrupt_counted(self, tmp_path: Path) -> None:
        for i in (3, 1, 0):
            cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((5, 7, 3), i, np.uint8))
        (tmp_path / "2.png").write_bytes(b"broken")
        (tmp_path / "notes.txt").write_text("no image")
        feed = video_feed(tmp_path, fps=5)
        frames = drain(feed)
        assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 1, 3]
        assert [frame.time for frame in frames] == pytest.approx([0, 0.2, 0.6])
        assert (feed.counts.corrupt, feed.error) == (1, None)

    def test_nothing_readable(self, tmp_path: Path) -> None:
        (tmp_path / "2.png").write_bytes(b"broken")
        feed = video_feed(tmp_path, loop=True)
        assert drain(feed) == []
        assert feed.error == "there is no readable frame in it"
        with pytest.raises(FeedError, match="no readable frame"):
            resolve("yard", str(tmp_path)).probe()

    def test_one_image_in_a_loop_is_read_at_its_rate(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
        reads: list[object] = []
        imdecode = cv2.imdecode

        def counted(data: Any, flags: int) -> object:
            reads.append(data)
            return imdecode(data, flags)

        monkeypatch.setattr(cv2, "imdecode", counted)
        frames = drain(video_feed(tmp_path, fps=10, loop=True), limit=6)
        assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
        assert len(reads) == 6


class TestCamera:
    def test_dies_and_comes_back(self) -> None:
        camera = FakeCamera(
            partial(pictures, 5, OSError("connection reset")), FeedError("nobody answers"), partial(pictures, 5)
        )
        feed = Feed("gate", camera, backoff=SOON)
        frames = take_until(feed, lambda frames: feed.counts.restarts >= 4)
        assert feed.delivered == 10
        assert frames[-1].index == 9
        assert feed.error == "nobody answers"
        assert all(reader.closed for reader in camera.readers)

    def test_the_end_of_a_stream_is_a_restart(self) -> None:
        feed = Feed("gate", FakeCamera(partial(pictures, 3), partial(pictures, 3)), backoff=SOON)
        frames = drain(feed, limit=6)
        assert len(frames) == 6
        assert (feed.counts.restarts, feed.error) == (1, "the stream ended")
        times = [frame.time for frame in frames]
        assert times == sorted(set(times))

    def test_backs_off(self) -> None:
        delays: list[float] = []

        class Recorded(Backoff):
            def delay(self, attempt: int) -> float:
                delays.append(super().delay(attempt))
                return 0.0

        refused = [OSError("refused")] * 3
        camera = FakeCamera(*refused, partial(pictures, 1, OSError("reset")), *refused, partial(pictures, 1))
        drain(Feed("gate", camera, backoff=Recorded()), limit=2)
        assert delays == [0.5, 1.0, 2.0, 0.5, 1.0, 2.0, 4.0]

    def test_stop_while_backing_off(self) -> None:
        feed = Feed("gate", FakeCamera(), backoff=Backoff(1000, 1000))
        take_until(feed, lambda frames: feed.counts.restarts == 1)
        assert feed.finished
        assert feed.delivered == 0

    def test_over_http(self, tmp_path: Path) -> None:
        write_video(tmp_path / "a.mp4", 8)
        write_video(tmp_path / "a.ts", 8, codec="mpeg2video")
        with serve(tmp_path) as address:
            film = Feed("gate", resolve("gate", f"{address}/a.mp4"), backoff=SOON)
            assert len(drain(film)) == 8
            assert (film.counts.restarts, film.error) == (0, None)
            camera = Feed("gate", resolve("gate", f"{address}/a.ts"), backoff=SOON)
            assert len(drain(camera, limit=12)) == 12
            assert (camera.counts.restarts, camera.error) == (1, "the stream ended")
            with pytest.raises(FeedError, match="404"):
                resolve("gate", f"{address}/b.mp4").probe()


class TestDelivery:
    def test_newest_wins(self) -> None:
        read, release = Event(), Event()

        def five_then_silence() -> Iterator[Picture]:
            yield from pictures(5)
            read.set()
            release.wait(LONG_S)

        feed = Feed("gate", FakeCamera(five_then_silence))
        feed.start(Condition())
        assert read.wait(LONG_S)
        frame = feed.take()
        assert frame is not None
        assert (frame.index, int(frame.image[0, 0, 0])) == (4, 4)
        assert feed.take() is None
        assert (feed.delivered, feed.dropped) == (5, 4)
        feed.stop()
        release.set()
        feed.join(LONG_S)
        assert feed.delivered == 5

    def test_offline_waits_for_the_consumer(self, tmp_path: Path) -> None:
        feed = video_feed(write_video(tmp_path / "a.mp4", 20))
        wake = Condition()
        feed.start(wake, live=False)
        taken = 0
        with wake:
            while not feed.finished:
                assert feed.delivered - taken <= 2
                frame = feed.take()
                if frame is None:
                    assert wake.wait(LONG_S)
                else:
                    assert frame.index == taken
                    taken += 1
        assert (taken, feed.dropped) == (20, 0)

    def test_stop_while_nobody_takes(self, tmp_path: Path) -> None:
        feed = video_feed(write_video(tmp_path / "a.mp4", 20))
        wake = Condition()
        feed.start(wake, live=False)
        with wake:
            assert wake.wait_for(lambda: feed.delivered == 2, LONG_S)
        feed.stop()
        feed.stop()
        feed.join(LONG_S)
        assert feed.delivered == 2

    def test_nothing_is_delivered_after_stop(self) -> None:
        def endless() -> Iterator[Picture]:
            while True:
                yield from pictures(100)

        feed = Feed("gate", FakeCamera(endless))
        wake = Condition()
        feed.start(wake)
        with wake:
            assert wake.wait_for(lambda: feed.delivered > 10, LONG_S)
        feed.stop()
        count = feed.delivered
        feed.join(LONG_S)
        assert feed.delivered == count

    def test_starts_once(self) -> None:
        feed = Feed("gate", FakeCamera(partial(pictures, 1)))
        feed.start(Condition(), limit=1)
        with pytest.raises(RuntimeError, match="started before"):
            feed.start(Condition())
        feed.join(LONG_S)


class TestTiming:
    def test_backoff(self) -> None:
        assert [Backoff().delay(i) for i in range(7)] == [0.5, 1, 2, 4, 8, 10, 10]
        assert Backoff().delay(10**6) == 10

    @given(rate=st.floats(1, 120), fps=st.floats(0.5, 120))
    def test_decimation_keeps_the_rate(self, rate: float, fps: float) -> None:
        decimator = Decimator(fps)
        count = 500
        kept = sum(decimator.keep(i / rate) for i in range(count))
        assert kept == pytest.approx(min(count, (count - 1) / rate * fps + 1), abs=1.01)

    @pytest.mark.parametrize("fps", [29.9, 30, 30.1])
    def test_a_camera_of_that_rate_loses_no_frame_to_rounded_stamps(self, fps: float) -> None:
        decimator = Decimator(30)
        kept = sum(decimator.keep(round(i / fps, 3)) for i in range(300))
        assert kept >= 299

    def test_a_pause_is_not_made_up_for(self) -> None:
        decimator = Decimator(10)
        assert decimator.keep(0.0)
        assert [decimator.keep(5 + i / 100) for i in range(21)] == [i in (0, 8, 18) for i in range(21)]

    def test_no_decimation(self) -> None:
        decimator = Decimator(None)
        assert all(decimator.keep(time) for time in (0, 0, 1))

    @given(passes=st.lists(st.lists(st.floats(-1e4, 1e4), max_size=20), max_size=5))
    def test_a_timeline_only_grows(self, passes: Sequence[Sequence[float]]) -> None:
        timeline = Timeline()
        times = []
        for stamps in passes:
            timeline.begin()
            times += [timeline(stamp) for stamp in stamps]
        assert all(a < b for a, b in pairwise(times))
        assert not times or times[0] == 0

    def test_a_timeline_starts_anew_where_told(self) -> None:
        timeline = Timeline()
        timeline.begin()
        assert [timeline(100.0), timeline(100.5)] == [0, 0.5]
        timeline.begin(8.0)
        assert [timeline(3.0), timeline(3.5)] == [8.0, 8.5]


class serve:  # noqa: N801
    """A web server on a free local port."""

    def __init__(self, folder: Path) -> None:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_variables_of_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_PASSWORD", "secret")
    source = resolve("gate", "rtsp://me:${CAMERA_PASSWORD}@camera/live")
    assert source.location == "rtsp://me:secret@camera/live"
    assert "secret" not in str(source)
    monkeypatch.delenv("CAMERA_PASSWORD")
    with pytest.raises(FeedError, match=r"feed .gate.: source .*: environment variable CAMERA_PASSWORD is not set"):
        resolve("gate", "rtsp://me:${CAMERA_PASSWORD}@camera/live")

"""HTTP cameras and videos that fail in every way: each is one line, is tried again, and shows no password."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from cameras import HttpCamera, Sending, jpeg
from take_frames import LONG_S, fails, watch

from gemel.errors import FeedError
from gemel.frames.settings import ReadSettings
from gemel.frames.source import resolve


def test_a_camera_that_closes_the_connection() -> None:
    with HttpCamera([jpeg(i) for i in range(5)], Sending(fps=50, most=10)) as camera:
        feed, frames = watch(f"{camera.url}/mjpeg", lambda feed, frames: feed.delivered >= 25)
    assert feed.counts.restarts >= 2 and feed.error in ("the stream ended", "Input/output error")
    times = [frame.time for frame in frames]
    assert times == sorted(set(times))


def test_a_camera_that_falls_silent(caplog: pytest.LogCaptureFixture) -> None:
    with HttpCamera([jpeg(i) for i in range(5)], Sending(fps=50, silent_after=150)) as camera:
        watch(f"{camera.url}/mjpeg", lambda feed, frames: camera.opened >= 2 and feed.state == "running", timeout_s=0.5)
    assert "feed gate: no picture for 0.5 s; trying again in 0.0 s" in caplog.text
    assert "feed gate: pictures again after" in caplog.text


def test_a_camera_that_gives_pictures_seldom() -> None:
    """A picture a second, with a timeout of 0.7 s: the timeout grows until the camera is not torn down any more."""
    with HttpCamera([jpeg(i) for i in range(5)], Sending(fps=1)) as camera:
        watch(
            f"{camera.url}/mjpeg",
            lambda feed, frames: len(frames) >= 2 and frames[-1].time - frames[-2].time > 0.9,
            timeout_s=0.7,
        )
        assert camera.opened <= 4


class _Site(http.server.BaseHTTPRequestHandler):
    """Server whose paths are the status that they answer with."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        what = self.path.partition("?")[0].strip("/")
        if what == "silent":
            self.server.gone.wait(LONG_S)  # type: ignore[attr-defined]
            return
        if what == "login":
            body = b"<!DOCTYPE html><html><title>Please log in</title></html>" * 20
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if what in ("file", "loop"):
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd" if what == "file" else "/loop")
            self.end_headers()
            return
        self.send_error(int(what))


@pytest.fixture
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    server.daemon_threads = True
    server.gone = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.gone.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("401", "401"),
        ("403", "403"),
        ("404", "404"),
        ("500", "5XX"),
        ("login", "Invalid data"),
        ("file", ""),
        ("loop", ""),
        ("silent", "no answer for 0.5 s"),
    ],
)
def test_an_address_that_gives_no_video(path: str, reason: str, site: str, caplog: pytest.LogCaptureFixture) -> None:
    feed, frames = watch(f"{site}/{path}?usr=admin&pwd=s3cr3t", fails, timeout_s=0.5)
    assert not frames and feed.state == "reconnecting"
    # A camera that is silent gets twice the time at the next attempt, which is another reason.
    assert len(caplog.messages) == (2 if path == "silent" else 1)
    assert caplog.messages[0].startswith(f"feed gate: cannot open {site}: ") and reason in caplog.messages[0]
    for line in caplog.messages:
        assert "s3cr3t" not in line and "\n" not in line and "root:" not in line


def test_a_redirection_to_a_camera() -> None:
    with HttpCamera([jpeg(i) for i in range(5)], Sending(fps=50)) as camera:

        class Elsewhere(_Site):
            def do_GET(self) -> None:
                self.send_response(302)
                self.send_header("Location", f"{camera.url}/mjpeg")
                self.end_headers()

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        feed, _ = watch(f"http://127.0.0.1:{server.server_port}/", lambda feed, frames: feed.delivered >= 5)
        server.shutdown()
        server.server_close()
    assert feed.counts.restarts == 0


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    feed, _ = watch(f"http://127.0.0.1:{port}/mjpeg", fails)
    assert feed.error == f"cannot open http://127.0.0.1:{port}: Connection refused"
    assert len(caplog.messages) == 1


def test_a_video_whose_index_is_at_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without requests for parts of a file, such a video cannot be read over HTTP: one line, and it is tried again."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuvj420p"
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="bgr24")))
        container.mux(stream.encode(None))

    class Whole(_Site):
        def do_GET(self) -> None:
            body = (tmp_path / "a.mp4").read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Whole)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    feed, _ = watch(
        f"http://127.0.0.1:{server.server_port}/a.mp4", lambda feed, frames: fails(feed, frames) or feed.finished
    )
    server.shutdown()
    server.server_close()
    assert feed.state == "reconnecting" and feed.error is not None and "\n" not in feed.error
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "/etc/passwd", "http://127.0.0.1:{port}/x.ts", "concat:a|b"])
def test_a_playlist_opens_nothing_else(target: str, tmp_path: Path) -> None:
    """A playlist, local or from a camera, must not read files, nor make this machine ask others."""
    asked: list[str] = []
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n%s\n#EXT-X-ENDLIST\n"

    class Site(_Site):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "application/vnd.apple.mpegurl")
            self.end_headers()
            self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    content = playlist % target.format(port=server.server_port).encode()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    (tmp_path / "a.m3u8").write_bytes(content)
    with pytest.raises(FeedError) as caught:
        resolve("gate", str(tmp_path / "a.m3u8")).probe()
    assert not asked and "\n" not in str(caught.value)
    if not target.startswith("http"):
        with pytest.raises(FeedError) as caught:
            resolve("gate", f"http://127.0.0.1:{server.server_port}/a.m3u8", settings=ReadSettings(timeout_s=2)).probe()
        assert "\n" not in str(caught.value) and "root:" not in str(caught.value)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("source", ["concat:/etc/passwd|/etc/hostname", "file:///etc/passwd", "data://x", "pipe:0"])
def test_other_protocols_are_refused(source: str) -> None:
    with pytest.raises(FeedError, match="allowed: a video file, a folder of images"):
        resolve("gate", source)

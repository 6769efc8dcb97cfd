"""HTTP clients that leave, stay idle or send odd requests: none of them takes anything from the run or from others."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gemel.frames.frame import Frame
from gemel.runtime.service.latest_frames import LatestFrames
from gemel.runtime.service.status import RunStatus
from gemel.runtime.sinks.run_queries import RunQueries

pytest.importorskip("prometheus_client", reason="needs prometheus-client (the extra service)")
from gemel.runtime.service import http_requests, server
from gemel.runtime.service.metrics import RunMetrics


@pytest.fixture
def port() -> Iterator[int]:
    """Return the port of the HTTP server of a run with the feed ``gate``, which has no frame yet."""
    status = RunStatus("0.1", lambda: Path("bundle"))
    frames = LatestFrames({"gate-cars": "gate"})
    found = server.StatusServer(status, RunMetrics(status), frames, token="s3cret")
    yield int(found.url.rpartition(":")[2])
    frames.close()
    found.close()


def connect(port: int, request: str = "") -> socket.socket:
    """Return a connection to the server, on which a request was sent if one is given."""
    link = socket.create_connection(("127.0.0.1", port), timeout=10)
    if request:
        head = "Host: localhost\r\nAuthorization: Bearer s3cret\r\nConnection: close"
        link.sendall(f"{request} HTTP/1.1\r\n{head}\r\n\r\n".encode())
    return link


def ask(port: int, request: str) -> bytes:
    """Send a request, and return all that the server answers; an empty answer if the connection is closed."""
    with connect(port, request) as link:
        try:
            return link.makefile("rb").read()
        except ConnectionError:
            return b""


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_live_pictures_of_nothing_take_no_place(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_requests, "_PICTURE_WAIT_S", 0.05)
    assert b" 404 " in ask(port, "GET /feeds/nobody.mjpeg")
    assert ask(port, "HEAD /feeds/gate.mjpeg").endswith(b"\r\n\r\n")
    links = [connect(port, "GET /feeds/gate.mjpeg") for _ in range(16)]
    for link in links:
        assert link.recv(12) == b"HTTP/1.1 200"
    assert b" 503 " in ask(port, "GET /feeds/gate.mjpeg")
    for link in links:
        link.close()
    wait_for(lambda: b" 200 " in ask(port, "HEAD /feeds/gate.mjpeg"))


def test_idle_connections_do_not_pile_up(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(server, "_MOST_CONNECTIONS", 5)
    port: int = request.getfixturevalue("port")
    links = [connect(port) for _ in range(8)]
    assert [link.recv(1) for link in links[5:]] == [b""] * 3
    for link in links:
        link.close()
    wait_for(lambda: b" 200 " in ask(port, "GET /healthz"))


def test_the_log_has_no_token_and_no_control_characters(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "gemel"):
        assert b" 200 " in ask(port, "GET /status?token=s3cret")
        assert b" 404 " in ask(port, "GET /\x1b[31m?token=s3cret")
    assert "/status?..." in caplog.text and "s3cret" not in caplog.text and "\x1b" not in caplog.text


@pytest.mark.parametrize(
    ("header", "code"), [("Transfer-Encoding: chunked", b" 411 "), ("Content-Length: \xb2", b" 413 ")]
)
def test_a_body_without_a_length_is_refused(header: str, code: bytes, port: int) -> None:
    with connect(port) as link:
        head = f"POST /reload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s3cret\r\n{header}\r\n\r\n"
        link.sendall(head.encode("latin-1"))
        assert code in link.makefile("rb").read()


def test_frames_of_feeds_that_are_gone_are_dropped() -> None:
    queries = RunQueries({"gate-cars": "gate", "yard-cars": "yard"})
    frames, image = LatestFrames(queries), np.zeros((48, 64, 3), np.uint8)
    for feed in ("gate", "yard"):
        frames.on_frame(Frame(feed, 0, image, 0.0, 0.0), {})
    assert frames.picture("gate") is not None and frames.has("gate")
    queries.replace({"yard-cars": "yard"})
    frames.on_frame(Frame("yard", 1, image, 0.0, 0.0), {})
    assert frames.picture("gate") is None and not frames.has("gate")
    assert frames.picture("yard") is not None

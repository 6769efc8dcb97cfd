"""Batches of results to a web server on the loopback: repeated, bounded, and never waited for without end."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from threading import Event as Flag
from threading import Thread
from typing import Any

import numpy as np
import pytest
from sink_events import INFO, event, frame, wait_until

from gemel.bundles.output_specs import OutputSpec, WebhookSpec
from gemel.runtime.decode.results import Raw
from gemel.runtime.sinks import open_outputs
from gemel.runtime.sinks.webhook import WebhookWriter
from gemel.runtime.sinks.writer import RefusedError


class Server:
    """Web server that notes requests and answers with given status codes, 204 when there are none left."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.answers: deque[int] = deque()
        self.connections = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append((self.path, dict(self.headers), json.loads(body)))
                status = server.answers.popleft() if server.answers else 204
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def frames(self) -> list[int]:
        """Return the frames of all results that were sent, also those that were answered with a failure."""
        return [row["frame"] for _, _, content in self.requests for row in content["results"]]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def writer(port: int, **spec: object) -> WebhookWriter:
    """Return a writer to a server on the loopback."""
    return WebhookWriter(WebhookSpec(url=f"http://127.0.0.1:{port}/in?x=1", **spec), INFO)


def test_a_batch_is_one_request(server: Server) -> None:
    found = writer(server.port, headers={"Authorization": "Bearer abc"})
    batch = deque(event(index) for index in range(3))
    found.write(batch)
    found.write(deque([event(3)]))
    found.close()
    assert not batch
    path, headers, content = server.requests[0]
    assert path == "/in?x=1"
    assert headers["Content-Type"] == "application/json" and headers["Authorization"] == "Bearer abc"
    assert headers["User-Agent"].startswith("gemel/")
    assert set(content) == {"schema", "run", "results"} and content["run"] == INFO.run
    assert content["results"] == [json.loads(event(index).line()) for index in range(3)]
    assert len(server.requests) == 2 and server.connections == 1


def test_name_and_password_of_the_address(server: Server) -> None:
    found = WebhookWriter(WebhookSpec(url=f"http://box:p%40ss@127.0.0.1:{server.port}/"), INFO)
    found.write(deque([event(0)]))
    found.close()
    assert server.requests[0][1]["Authorization"] == "Basic Ym94OnBAc3M="


def test_large_outputs_are_not_sent(server: Server) -> None:
    found = writer(server.port)
    found.write(deque([event(0, Raw({"large": np.zeros(5000)}))]))
    found.close()
    assert server.requests[0][2]["results"][0]["result"] == {"large": {"dtype": "float64", "shape": [5000]}}


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_what_may_work_later_stays(server: Server, status: int) -> None:
    server.answers.append(status)
    found, batch = writer(server.port), deque([event(0), event(1)])
    with pytest.raises(ConnectionError, match=f"HTTP {status} "):
        found.write(batch)
    assert len(batch) == 2
    found.write(batch)
    found.close()
    assert server.frames() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("status", "reason"), [(401, "HTTP 401 Unauthorized"), (413, "HTTP 413"), (302, "redirections are not followed")]
)
def test_what_is_refused(server: Server, status: int, reason: str) -> None:
    server.answers.append(status)
    found = writer(server.port)
    with pytest.raises(RefusedError, match=reason):
        found.write(deque([event(0)]))
    found.close()
    assert [path for path, _, _ in server.requests] == ["/in?x=1"]


@pytest.fixture
def listener() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Start a server whose connections are handled by a function, and return its port."""
    sockets: list[socket.socket] = []

    def start(handle: Callable[[socket.socket], None]) -> int:
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)

        def serve() -> None:
            while True:
                try:
                    link, _ = listening.accept()
                except OSError:
                    return
                sockets.append(link)
                Thread(target=handle, args=(link,), daemon=True).start()

        Thread(target=serve, daemon=True).start()
        return int(listening.getsockname()[1])

    yield start
    for each in sockets:
        each.close()


def test_a_server_that_never_answers(listener: Callable[[Callable[[socket.socket], None]], int]) -> None:
    found = writer(listener(lambda link: None), timeout=0.2)
    with pytest.raises(TimeoutError, match=r"no answer in 0\.2 s"):
        found.write(deque([event(0)]))
    found.close()


def test_a_server_that_answers_byte_by_byte(listener: Callable[[Callable[[socket.socket], None]], int]) -> None:
    def drip(link: socket.socket) -> None:
        try:
            while True:
                link.sendall(b"H")
                stop.wait(0.05)
        except OSError:
            pass

    stop = Flag()
    found = writer(listener(drip), timeout=0.4)
    # Each byte comes in time; the whole answer does not.
    with pytest.raises(TimeoutError, match=r"no answer in 0\.4 s"):
        found.write(deque([event(0)]))
    found.close()


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 2", b"HTTP/1.1 999 \x1b[31m\r\n\r\n", b"\0" * 9999]
)
def test_a_server_that_speaks_something_else(
    listener: Callable[[Callable[[socket.socket], None]], int], answer: bytes
) -> None:
    def handle(link: socket.socket) -> None:
        link.recv(65536)
        link.sendall(answer)
        link.close()

    found = writer(listener(handle), timeout=5)
    with pytest.raises((OSError, RefusedError)) as caught:
        found.write(deque([event(0)]))
    assert "\x1b" not in str(caught.value)
    found.close()


def test_a_connection_that_was_closed_while_idle(listener: Callable[[Callable[[socket.socket], None]], int]) -> None:
    count = 0

    def once(link: socket.socket) -> None:
        nonlocal count
        link.recv(65536)
        count += 1
        link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        link.close()

    found = writer(listener(once), timeout=5)
    for index in range(3):
        batch = deque([event(index)])
        found.write(batch)
        assert not batch
    found.close()
    assert count == 3


@pytest.mark.skipif(which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server(context)
    url = f"https://localhost:{server.port}/"
    unknown = WebhookWriter(WebhookSpec(url=url), INFO)
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        unknown.write(deque([event(0)]))
    known = WebhookWriter(WebhookSpec(url=url, ca=str(certificate)), INFO)
    known.write(deque([event(1)]))
    known.close()
    server.close()
    assert server.frames() == [1]


def test_a_server_that_is_down_for_a_while(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemel.runtime.sinks.queued._FIRST_PAUSE_S", 0.01)
    spec = OutputSpec(webhook=WebhookSpec(url=f"http://127.0.0.1:{server.port}/?key=s3cret", every=0.01))
    server.answers.extend([503] * 4)
    outputs = open_outputs([spec], {"people": "yard"}, INFO)
    for index in range(30):
        outputs.on_result("people", frame(index), (), 1.0)
    wait_until(lambda: outputs.counts()["webhook"].written == 30, "results are sent after the outage")
    outputs.close()
    counts = outputs.counts()["webhook"]
    assert (counts.offered, counts.dropped, counts.failed, counts.state) == (30, 0, 0, "working")
    assert sorted(set(server.frames())) == list(range(30))


def test_nothing_is_there(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    spec = OutputSpec(webhook=WebhookSpec(url=f"http://box:s3cret@127.0.0.1:{port}/s3cret?key=s3cret", every=0))
    outputs = open_outputs([spec], {"people": "yard"}, INFO)
    outputs.on_result("people", frame(0), (), 1.0)
    wait_until(lambda: outputs.counts()["webhook"].state == "failing", "the failure is noticed")
    outputs.close()
    counts = outputs.counts()["webhook"]
    assert (counts.written, counts.dropped, counts.error) == (0, 1, "Connection refused")
    assert [each.getMessage() for each in caplog.records] == [
        f"output webhook (http://127.0.0.1:{port}): Connection refused"
    ]

"""HTTP server of a run: what each address answers, who may ask, and what a wrong request gets."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from gemel.errors import InputError
from gemel.frames.frame import Frame
from gemel.runtime.decode.results import Detection
from gemel.runtime.loop.summary import FeedStats, Latency, MemoryUse, QueryStats, RunCounts, RunStats, Summary
from gemel.runtime.service.latest_frames import LatestFrames
from gemel.runtime.service.status import STALLED_S, RunStatus, SegmentStatus

parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus-client (the extra service)")
from gemel.runtime.service.http_requests import is_loopback  # noqa: E402
from gemel.runtime.service.metrics import RunMetrics  # noqa: E402
from gemel.runtime.service.server import StatusServer  # noqa: E402

IMAGE = np.full((48, 64, 3), 90, np.uint8)


def summary() -> Summary:
    queries = {
        "gate-cars": QueryStats("gate", 10, 7, 1, "it failed", latency=Latency(1.0, 2.0, 3.0), ran=RunCounts(4, 10)),
        'odd "name"': QueryStats("gate", 10, 10),
    }
    stats = RunStats(5.0, queries, {"gate": FeedStats(10, 2, 1)})
    return Summary(stats, "ort-cpu", MemoryUse(1000, 900), run_id="r1")


class Recorder:
    """Control that notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def reload(self, bundle: str | None) -> Mapping[str, Any]:
        if bundle == "broken":
            raise InputError("broken: not a bundle")
        self.asked.append(bundle)
        return {"reloaded": bundle}

    def pause(self, kind: str, name: str, paused: bool) -> Mapping[str, Any]:
        if name != "gate":
            raise LookupError(f"{name} does not exist")
        self.asked.append((kind, name, paused))
        return {"paused": paused}


class Site:
    """A server with everything behind it."""

    def __init__(self, **options: Any) -> None:
        segments = [SegmentStatus("s0", 600, ("a", "b"), True), SegmentStatus("s1", 300, ("a",), False)]
        self.status = RunStatus("0.1", lambda: Path("bundle"), lambda: segments)
        self.status.begin(summary)
        self.metrics = RunMetrics(self.status)
        self.frames = LatestFrames({"gate-cars": "gate"})
        self.control = Recorder()
        self.server = StatusServer(self.status, self.metrics, self.frames, self.control, **options)
        self.port = int(self.server.url.rpartition(":")[2])

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, str, bytes]:
        """Return the status, the content type and the body of an answer."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            link.request(method, path, body, headers)
            answer = link.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read()
        finally:
            link.close()

    def json(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        status, kind, content = self.ask(path, method, body, **headers)
        assert kind == "application/json"
        return status, json.loads(content)

    def show(self, index: int) -> None:
        now = time.monotonic()
        frame = Frame("gate", index, IMAGE, now, now)
        self.frames.on_frame(frame, {"gate-cars": (Detection((5, 5, 40, 40), 0.9, "car"),)})


@pytest.fixture
def site() -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def build(**options: Any) -> Site:
        made.append(Site(**options))
        return made[-1]

    yield build
    for each in made:
        each.frames.close()
        each.server.close()


def test_status(site: Callable[..., Site]) -> None:
    box = site()
    box.status.answers.on_result("gate-cars", Frame("gate", 0, IMAGE, 0.0, 0.0), (), 12.0)
    code, status = box.json("/status")
    assert code == 200 and status["run"] == "r1" and status["ready"] and status["healthy"]
    assert status["queries"]["gate-cars"]["processed"] == 7 and status["queries"]["gate-cars"]["age_s"] >= 0
    assert status["queries"]['odd "name"']["age_s"] is None
    assert status["segments"][0] == {"name": "s0", "bytes": 600, "models": ["a", "b"], "resident": True}


def test_health_and_readiness(site: Callable[..., Site]) -> None:
    box = site()
    box.status.ready = False
    assert box.json("/readyz")[0] == 503
    # While models are prepared, which may take many minutes, nobody gives signs of life.
    box.status._beaten -= STALLED_S + 1
    assert box.json("/healthz") == (200, {"status": "ok"})
    box.status.begin(summary)
    assert box.json("/healthz") == box.json("/readyz") == (200, {"status": "ok"})
    box.status._beaten -= STALLED_S + 1
    code, verdict = box.json("/healthz")
    assert code == 503 and "no sign of life" in verdict["reason"]
    box.status.beat()
    assert box.json("/healthz")[0] == 200


def test_metrics_are_what_prometheus_reads(site: Callable[..., Site]) -> None:
    box = site()
    for latency in (8.0, 80.0, 800.0):
        box.metrics.on_result("gate-cars", Frame("gate", 0, IMAGE, 0.0, 0.0), (), latency)
    code, kind, body = box.ask("/metrics")
    assert code == 200 and kind.startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    counts = {
        name: samples[f"gemel_query_{name}_total", ("feed", "gate"), ("query", "gate-cars")]
        for name in ("frames", "processed", "skipped", "errors", "runs")
    }
    assert counts == {"frames": 10, "processed": 7, "skipped": 3, "errors": 1, "runs": 4}
    assert samples["gemel_query_frames_per_run", ("query", "gate-cars")] == 2.5
    assert ("gemel_query_frames_per_run", ("query", 'odd "name"')) not in samples
    assert samples["gemel_query_processed_total", ("feed", "gate"), ("query", 'odd "name"')] == 10
    assert samples["gemel_feed_restarts_total", ("feed", "gate")] == 2
    assert samples["gemel_memory_resident_bytes",] == 600
    assert samples["gemel_query_latency_seconds_count", ("query", "gate-cars")] == 3
    assert samples["gemel_query_latency_seconds_bucket", ("le", "0.1"), ("query", "gate-cars")] == 2


def test_the_page_loads_nothing_from_elsewhere(site: Callable[..., Site]) -> None:
    code, kind, body = site().ask("/")
    assert code == 200 and kind.startswith("text/html")
    assert b"http://" not in body and b"https://" not in body


def test_pictures(site: Callable[..., Site]) -> None:
    box = site()
    assert box.json("/feeds/gate.jpg")[0] == 404
    box.show(3)
    code, kind, body = box.ask("/feeds/gate.jpg")
    picture = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert (code, kind) == (200, "image/jpeg") and picture is not None and picture.shape == IMAGE.shape
    assert np.abs(picture.astype(int) - IMAGE).max() > 40  # something was drawn
    assert box.frames.picture("gate", after=3, timeout=0.0) is None


def test_a_live_picture_follows_the_feed(site: Callable[..., Site]) -> None:
    box = site()
    box.show(0)
    with socket.create_connection(("127.0.0.1", box.port), timeout=10) as link:
        link.sendall(b"GET /feeds/gate.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        reader = link.makefile("rb")
        seen = b"".join(iter(reader.readline, b"\r\n"))
        assert b"200 OK" in seen and b"multipart/x-mixed-replace" in seen
        for index in (1, 2):
            while (line := reader.readline()) and not line.startswith(b"Content-Length"):
                pass
            reader.readline()
            picture = reader.read(int(line.split(b":")[1]))
            assert picture.startswith(b"\xff\xd8")
            box.show(index)


def test_changes_are_passed_on(site: Callable[..., Site]) -> None:
    box = site()
    assert box.json("/reload", "POST") == (200, {"reloaded": None})
    assert box.json("/reload", "POST", b'{"bundle": "new"}') == (200, {"reloaded": "new"})
    assert box.json("/feeds/gate/pause", "POST") == (200, {"paused": True})
    assert box.json("/queries/gate/resume", "POST") == (200, {"paused": False})
    assert box.control.asked == [None, "new", ("feeds", "gate", True), ("queries", "gate", False)]


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        ("/reload", b'{"bundle": "broken"}', 400, "not a bundle"),
        ("/reload", b"{", 400, "not JSON"),
        ("/reload", b"[" * 50000, 400, "not JSON"),
        ("/reload", b'{"bundle": 3}', 400, "folder of a bundle"),
        ("/reload", b'{"bundle": "a", "more": 1}', 400, "nothing else"),
        ("/reload", b'{"bundle": "a\\u0000b"}', 400, "folder of a bundle"),
        ("/reload", b'{"bundle": "\\ud800"}', 400, "folder of a bundle"),
        ("/reload", b'{"bundle": "' + b"a" * 5000 + b'"}', 400, "folder of a bundle"),
        ("/reload", b" " * 70000, 413, "at most"),
        ("/queries/other/pause", b"", 404, "does not exist"),
        ("/queries/gate/stop", b"", 404, "does not exist"),
        ("/elsewhere", b"", 404, "does not exist"),
    ],
)
def test_wrong_requests_get_a_line(site: Callable[..., Site], path: str, body: bytes, code: int, words: str) -> None:
    box = site()
    found, answer = box.json(path, "POST", body)
    assert found == code and words in answer["error"] and "\n" not in answer["error"]
    assert box.control.asked == []


@pytest.mark.parametrize("header", [{"Transfer-Encoding": "chunked"}, {"Content-Length": "\xb2"}])
def test_a_body_without_a_length_changes_nothing(site: Callable[..., Site], header: dict[str, str]) -> None:
    box = site()
    assert box.json("/reload", "POST", None, **header)[0] in (411, 413)
    assert box.control.asked == []


def test_a_token_is_asked_for(site: Callable[..., Site]) -> None:
    box = site(token="s3cret")
    assert box.json("/status")[0] == 401 and box.json("/reload", "POST")[0] == 401
    assert box.json("/status", Authorization="Bearer wrong")[0] == 401
    assert box.json("/status", Authorization="Bearer s3cret")[0] == 200
    assert box.ask("/?token=s3cret")[0] == 200
    assert box.json("/healthz")[0] == 200 and box.json("/healthz", "POST")[0] == 401
    assert box.json("/reload?token=s3cret", "POST")[0] == 401  # links must not change anything
    assert box.json("/reload", "POST", Authorization="Bearer s3cret")[0] == 200
    assert box.json("/status", Authorization="Bearer s3cr\xe9t")[0] == 401


def test_pages_elsewhere_cannot_use_the_browser(site: Callable[..., Site]) -> None:
    box = site()
    assert box.json("/status", Host="evil.example")[0] == 403
    assert box.json("/status", Host=f"localhost:{box.port}")[0] == 200
    assert box.json("/reload", "POST", Origin="http://evil.example")[0] == 403
    origin = f"http://127.0.0.1:{box.port}"
    assert box.json("/reload", "POST", None, Origin=origin)[0] == 200


def test_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.7", "box.example", "")))


def test_where_the_server_may_listen(site: Callable[..., Site]) -> None:
    with pytest.raises(InputError, match=r"--metrics-host 0\.0\.0\.0: other machines can connect .* token"):
        site(host="0.0.0.0")
    taken = site().port
    with pytest.raises(InputError, match=rf"--metrics-port {taken}: cannot listen on 127\.0\.0\.1"):
        site(port=taken)

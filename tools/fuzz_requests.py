"""HTTP requests to a running bundle, made at random: whatever is asked, the server answers, and goes on."""

from __future__ import annotations

import json
import re
import socket
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from gemel.bundles.reader import open_bundle
from gemel.errors import InputError
from gemel.runtime.loop.summary import FeedStats, QueryStats, RunStats, Summary
from gemel.runtime.service import server as server_module
from gemel.runtime.service.latest_frames import LatestFrames
from gemel.runtime.service.metrics import RunMetrics
from gemel.runtime.service.server import StatusServer
from gemel.runtime.service.status import RunStatus

__all__ = ["Request", "check_request", "requests"]

_TOKEN = "open-sesame"
_ANSWERS = {200, 400, 401, 403, 404, 405, 411, 413, 414, 431, 501, 505}
"""Status codes that the server may answer."""
_PATHS = [
    "/", "/metrics", "/status", "/healthz", "/readyz", "/reload", "/feeds/gate.jpg", "/feeds/../../etc/passwd.jpg",
    "/queries/a/pause", "/queries/a/resume", "/feeds/gate/pause", "/queries//pause", "/queries/%00/pause",
    "/feeds/.jpg",     "//", "/reload/", "/%", "/status?token=open-sesame", "http://elsewhere/status", "*",
]  # fmt: skip
_HOSTS = ["localhost", "localhost", "127.0.0.1:80", "elsewhere", "[::1]", "[", "a:b", "", "\u00e9"]
_TOKENS = [*[f"Bearer {_TOKEN}"] * 4, "Bearer wrong", "", "Basic x", "Bearer \u00e9"]


class Request(NamedTuple):
    """Bytes of one request, as a client sends them."""

    data: bytes


class _Control:
    """Changes that are only checked, not made."""

    def reload(self, bundle: str | None) -> dict[str, Any]:
        if bundle is not None:
            open_bundle(Path(bundle))
        return {"bundle": bundle}

    def pause(self, kind: str, name: str, paused: bool) -> dict[str, Any]:
        if name not in ("a", "gate"):
            raise LookupError(f"{name!r} does not run")
        if kind == "feeds" and name == "a":
            raise InputError("a is no feed")
        return {kind: {name: paused}}


@cache
def _serve() -> tuple[int, list[BaseException]]:
    """Start a server, and return its port and a list of the exceptions that its handlers raised."""
    raised: list[BaseException] = []

    def note(self: object, request: object, client_address: object) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            raised.append(error)

    server_module._Server.handle_error = note  # type: ignore[method-assign]
    stats = RunStats(1.0, {"a": QueryStats("gate", 2, 1)}, {"gate": FeedStats(2)})
    status = RunStatus("0", lambda: Path("bundle"))
    status.begin(lambda: Summary(stats, "ort-cpu"))
    server = StatusServer(status, RunMetrics(status), LatestFrames({"a": "gate"}), _Control(), token=_TOKEN)
    return int(server.url.rpartition(":")[2]), raised


_text = st.text(st.characters(max_codepoint=0x2FF), max_size=20)
_bodies = st.one_of(
    st.just(b""),
    st.binary(max_size=200),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), _text),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_text, inner, max_size=3)),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    _text.map(lambda path: json.dumps({"bundle": path}).encode()),
    st.sampled_from(["..", "/etc", "/dev/zero", "a\0b", "x" * 5000, "\ud800"]).map(
        lambda path: json.dumps({"bundle": path}).encode()
    ),
    st.integers(1, 3000).map(lambda depth: b"[" * depth),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Make a request: mostly a right one with one or more parts that are not."""
    method = draw(st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "get", ""]))
    path = draw(st.one_of(st.sampled_from(_PATHS), _text))
    body = draw(_bodies)
    length = draw(st.sampled_from([str(len(body)), str(len(body)), "-1", "1e9", "99999999", "", "\u00b2", "0"]))
    headers = {
        "Host": draw(st.sampled_from(_HOSTS)),
        "Authorization": draw(st.sampled_from(_TOKENS)),
        "Content-Length": length,
        draw(st.sampled_from(["Origin", "X-Other", "Connection", "Transfer-Encoding"])): draw(_text),
    }
    left_out = draw(st.sets(st.sampled_from(sorted(headers)), max_size=2))
    lines = [f"{method} {path} {draw(st.sampled_from(['HTTP/1.1', 'HTTP/1.0', 'HTTP/9', '']))}"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name not in left_out]
    head = "\r\n".join([*lines, "Connection: close", "", ""])
    return Request(head.encode("utf-8", "surrogatepass") + body)


def check_request(ground: object, request: Request) -> None:
    """Send a request, and check that the server answers or hangs up, raises nothing, and answers the next one."""
    port, raised = _serve()
    answer = _send(port, request.data)
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    if answer and found:
        assert int(found.group(1)) in _ANSWERS, answer[:300]
    assert b"Traceback" not in answer
    errors = list(raised)
    raised.clear()
    assert not errors, errors
    healthy = _send(port, b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert b" 200 " in healthy.split(b"\r\n")[0]


def _send(port: int, data: bytes) -> bytes:
    """Send bytes to the server, say that no more will come, and return the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
        try:
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
            pieces = []
            while piece := link.recv(1 << 16):
                pieces.append(piece)
        except ConnectionError:
            # The server has hung up on a request that it does not read.
            return b""
    return b"".join(pieces)

"""Commands that ask a running gemel-run: status, reload, pause and resume, and what they say without an answer."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from helpers import BIN

pytest.importorskip("prometheus_client", reason="needs prometheus-client (the extra service)")
Gemel = Callable[..., tuple[int, str, str]]
Start = Callable[..., tuple["subprocess.Popen[str]", str]]
TOKEN = "open-sesame"


@pytest.fixture
def start(bundle: Path) -> Iterator[Start]:
    """Return a function that starts gemel-run with an HTTP server, and returns the process and the server's port."""
    begun: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
        feed = f"yard={bundle.parent / 'yard.mp4'}"
        command: list[str | Path] = [BIN / "gemel-run", bundle, "--feed", feed, *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment})
        begun.append(process)
        assert process.stdout is not None
        found = next((each for line in process.stdout if (each := re.search(r"http://[\d.]+:(\d+)", line))), None)
        assert found is not None
        return process, found.group(1)

    yield run
    for process in begun:
        process.kill()
        process.communicate()


def status_when_ready(gemel: Gemel, port: str, *flags: str | Path) -> tuple[int, str, str]:
    """Return what ``gemel status`` answers as soon as the run takes frames."""
    while "preparing" in (answer := gemel("status", "--port", port, *flags))[1]:
        time.sleep(0.05)
    return answer


def test_a_running_bundle(start: Start, gemel: Gemel, bundle: Path, tmp_path: Path) -> None:
    process, port = start("--metrics-port", "0")
    code, out, _ = status_when_ready(gemel, port, "--json", tmp_path / "s.json")
    assert code == 0 and f"{bundle} on ort-cpu: running" in out and "weights: " in out
    assert '"ready": true' in (tmp_path / "s.json").read_text()
    code, out, _ = gemel("pause", "c", "--port", port)
    assert (code, out) == (0, "query c: paused\n")
    assert re.search(r"^c .* paused", gemel("status", "--port", port)[1], re.MULTILINE)
    assert gemel("resume", "c", "--port", port)[1] == "query c: resumed\n"
    assert gemel("pause", "gate", "--feed", "--port", port)[:2] == (0, "feed gate: paused\n")
    code, out, _ = gemel("reload", "--port", port)
    assert code == 0 and out.startswith(f"{bundle} runs now, after ") and "0.0 MB are new" in out
    assert f"last reload: {bundle}: done" in gemel("status", "--port", port)[1]
    process.terminate()
    assert process.wait(60) == 0


def test_refusals_are_one_line(start: Start, gemel: Gemel, tmp_path: Path) -> None:
    process, port = start("--metrics-port", "0")
    status_when_ready(gemel, port)
    for words, reason in (
        (("pause", "nobody"), "'nobody' does not run; queries that do are a, b, c"),
        (("reload", str(tmp_path)), "not a bundle"),
    ):
        code, out, err = gemel(*words, "--port", port)
        assert (code, out) == (2, "") and reason in err and err.count("\n") == 1
    process.terminate()
    # The cameras ran on.
    assert process.wait(60) == 0


def test_a_token(start: Start, gemel: Gemel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, port = start("--metrics-port", "0", "--metrics-host", "0.0.0.0", GEMEL_TOKEN=TOKEN)
    monkeypatch.delenv("GEMEL_TOKEN", raising=False)
    for command in ("status", "reload"):
        code, _, err = gemel(command, "--port", port)
        assert code == 2 and "a token is needed" in err and err.count("\n") == 1
    (tmp_path / "token").write_text("wrong\n")
    code, _, err = gemel("status", "--port", port, "--token-file", tmp_path / "token")
    assert code == 2 and err.count("\n") == 1 and "wrong" not in err
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    # A run that is stopped before its first frame ends with the signal's status.
    assert status_when_ready(gemel, port, "--token-file", tmp_path / "token")[0] == 0
    # The cameras ran on.
    process.terminate()
    assert process.wait(60) == 0


def test_nobody_answers(gemel: Gemel) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        code, _, err = gemel("status", "--port", str(taken.getsockname()[1]))
    assert code == 1 and "no answer of a running gemel-run: Connection refused" in err and err.count("\n") == 1


@pytest.fixture
def stranger() -> Iterator[str]:
    """Return the port of a server that answers every request with JSON, and is no gemel-run."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok"}')

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield str(server.server_address[1])
        server.shutdown()


@pytest.mark.parametrize("words", [("status",), ("reload",), ("pause", "a"), ("resume", "a", "--feed")])
def test_another_program_answers(words: tuple[str, ...], stranger: str, gemel: Gemel) -> None:
    code, out, err = gemel(*words, "--port", stranger)
    assert (code, out) == (1, "") and "the answer is not that of a gemel-run" in err and err.count("\n") == 1


def test_a_host_that_is_none(gemel: Gemel) -> None:
    code, _, err = gemel("status", "--port", "1", "--host", "a b")
    assert code == 1 and "no answer of a running gemel-run" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--metrics-host", "0.0.0.0"), "a token is needed"),
        (("--metrics-host", "nowhere.invalid"), "a token is needed"),
        (("--token-file", "missing"), "cannot be read"),
        (("--log-level", "loud"), "one of debug, info, warning, error is expected"),
    ],
)
def test_flags_that_cannot_be_meant(flags: tuple[str, ...], reason: str, gemel: Gemel, bundle: Path) -> None:
    code, _, err = gemel("run", bundle, "--metrics-port", "0", *flags)
    assert code == 2 and reason in err and err.count("\n") == 1


def test_a_port_that_is_taken_does_not_stop_cameras(gemel: Gemel, bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, out, err = gemel("run", bundle, "--metrics-port", port, "--offline", "--frames", "3")
    assert code == 0 and "Next: " in out
    assert f"error --metrics-port {port}: cannot listen on 127.0.0.1: Address already in use; the run goes on" in err
    assert err.count("\n") == 1

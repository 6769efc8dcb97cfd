"""A box that nobody watches: first starts at once, no open port, odd terminals, and outputs that cannot be reached."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from broker import MOSQUITTO, Broker
from helpers import BIN, call

ALL = {"a": 12, "b": 12, "c": 6}
"""Query -> frames that it processes in an offline run of the fixture's bundle."""


def processed(summary: Path) -> dict[str, int]:
    return {name: query["processed"] for name, query in json.loads(summary.read_text())["queries"].items()}


def test_three_first_runs_of_one_bundle_at_once(bundle: Path, tmp_path: Path) -> None:
    """Each finds no device cache. One of the caches that they make stays, and all of them answer every frame."""
    runs = []
    for number, memory in enumerate(("all", "min", "min")):
        summary = tmp_path / f"{number}.json"
        command: list[str | Path] = [BIN / "gemel-run", bundle, "--offline", "--memory", memory, "--json", summary]
        runs.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for number, run in enumerate(runs):
        _, err = run.communicate(timeout=120)
        assert (run.returncode, err) == (0, "")
        assert processed(tmp_path / f"{number}.json") == ALL
    (cache,) = (bundle / "device-cache").iterdir()
    assert not cache.name.startswith(".")


def test_nothing_listens_unasked(bundle: Path, tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    command: list[str | Path] = [BIN / "gemel-run", bundle, "--feed", f"yard={bundle.parent / 'yard.mp4'}"]
    with subprocess.Popen([*command, "--results", results], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        ends = time.monotonic() + 60
        while not (results.exists() and results.stat().st_size):
            assert time.monotonic() < ends
            time.sleep(0.05)
        process = psutil.Process(run.pid)
        ports = [each.net_connections(kind="inet") for each in (process, *process.children(recursive=True))]
        run.terminate()
        _, err = run.communicate(timeout=60)
    assert ports == [[]] and (run.returncode, err) == (0, b"")


def test_a_terminal_of_ascii(bundle: Path, tmp_path: Path) -> None:
    video = tmp_path / "Türkamera 门.mp4"
    video.write_bytes((bundle.parent / "yard.mp4").read_bytes())
    flags: list[str | Path] = [
        "--offline",
        "--frames",
        "3",
        "--feed",
        f"yard={video}",
        "--results",
        "-",
        "--json",
        tmp_path / "s.json",
    ]
    done = call("gemel-run", bundle, *flags, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert all(json.loads(line) for line in done.stdout.splitlines())


@contextmanager
def _refusing_broker(folder: Path) -> Iterator[tuple[str, str]]:
    broker = Broker(folder, users={"box": "right"})
    try:
        yield f"mqtt: {{url: 'mqtt://127.0.0.1:{broker.port}', username: box, password: '${{KEY}}'}}", "refuses the"
    finally:
        broker.stop()


@contextmanager
def _silent_webhook(folder: Path) -> Iterator[tuple[str, str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"webhook: {{url: 'http://127.0.0.1:{server.getsockname()[1]}/in', timeout: 0.3}}", "no answer in 0.3 s"


@contextmanager
def _folder_that_is_a_file(folder: Path) -> Iterator[tuple[str, str]]:
    (folder / "file").touch()
    yield f"video: {{folder: '{folder}/file/videos'}}", "Not a directory"


@pytest.mark.parametrize(
    "output",
    [
        pytest.param(_refusing_broker, marks=pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto")),
        _silent_webhook,
        _folder_that_is_a_file,
    ],
    ids=["a broker that refuses the password", "a webhook that never answers", "a folder that is a file"],
)
def test_an_output_that_cannot_be_reached_is_one_line(output: object, bundle: Path, tmp_path: Path) -> None:
    with output(tmp_path) as (spec, reason):  # type: ignore[operator]
        (tmp_path / "o.yaml").write_text(f"outputs:\n  - {spec}\n")
        flags: list[str | Path] = ["--offline", "--outputs", tmp_path / "o.yaml", "--json", tmp_path / "s.json"]
        done = call("gemel-run", bundle, *flags, KEY="wr0ng")
    assert processed(tmp_path / "s.json") == ALL
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if " output " in line]
    assert reason in line
    assert "wr0ng" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("failed: output ")

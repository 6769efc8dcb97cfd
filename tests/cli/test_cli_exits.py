"""How gemel-run ends: exit status, named failures, and a whole summary.json, whatever happens to it and its output."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from helpers import BIN, write_video

from gemel.cli import run_main
from gemel.frames.frame import Frame
from gemel.runtime.decode.results import Result
from gemel.runtime.loop.inference import Inference

NOBODY = "rtsp://127.0.0.1:9/street"
"""Address at which no camera listens."""


@pytest.fixture
def prepared(bundle: Path) -> Path:
    """Return a bundle that is baked; its feed ``gate`` loops for ever."""
    done = subprocess.run([BIN / "gemel-run", bundle, "--offline", "--frames", "1"], capture_output=True, timeout=120)
    assert done.returncode == 0
    return bundle


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(prepared: Path, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts gemel-run with some arguments, and a file for its summary."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        command = [BIN / "gemel-run", prepared, "--json", tmp_path / "summary.json", *arguments]
        started.append(subprocess.Popen(command, **settings))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def summary(tmp_path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text())
    return document


def wait_for_frames(tmp_path: Path, results: Path) -> None:
    """Wait until a run has written its summary and a result."""
    ends = monotonic() + 60
    while not ((tmp_path / "summary.json").exists() and results.exists() and results.stat().st_size):
        assert monotonic() < ends
        sleep(0.02)


@pytest.fixture
def in_a_terminal() -> Iterator[Callable[[], None]]:
    """Return a function that gives the process that is about to start a terminal, and the usual handler of SIGHUP."""
    keyboard, terminal = os.openpty()

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    yield prepare
    os.close(keyboard)
    os.close(terminal)


def _as_a_service() -> None:
    """Take its terminal, if there is one, from the process that is about to start."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.setsid()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_in_order(
    number: signal.Signals, start: Start, tmp_path: Path, in_a_terminal: Callable[[], None]
) -> None:
    results = tmp_path / "results.jsonl"
    process = start("--results", results, preexec_fn=in_a_terminal)
    wait_for_frames(tmp_path, results)
    assert summary(tmp_path)["status"]["state"] == "running"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    found = summary(tmp_path)
    assert (found["status"]["state"], found["status"]["failures"]) == ("stopped", {})
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == sum(query["processed"] for query in found["queries"].values())
    assert out.splitlines()[-1].startswith("Next: ")


def test_hangup_reloads_a_run_without_a_terminal(start: Start, prepared: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    process = start("--results", results, preexec_fn=_as_a_service)
    wait_for_frames(tmp_path, results)
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert f"warning reload: {prepared} runs now, after " in line
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    found = summary(tmp_path)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == sum(query["processed"] for query in found["queries"].values())


def test_nohup(start: Start, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    process = start("--results", results, "--duration", "3", preexec_fn=ignore)
    wait_for_frames(tmp_path, results)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert summary(tmp_path)["status"]["state"] == "ended"


def test_kill_leaves_a_whole_summary(start: Start, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    process = start("--results", results)
    wait_for_frames(tmp_path, results)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert summary(tmp_path)["status"]["state"] == "running"


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
def test_cameras_that_are_away(number: signal.Signals | None, start: Start, tmp_path: Path) -> None:
    """Whoever stops a run knows that it is to end; a run that ends by itself must name the query without a frame."""
    feeds = [item for name in ("yard", "gate") for item in ("--feed", f"{name}={NOBODY}")]
    process = start(*feeds, *([] if number else ["--duration", "1"]))
    ends = monotonic() + 60
    while not (tmp_path / "summary.json").exists():
        assert monotonic() < ends
        sleep(0.02)
    if number is not None:
        process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (0 if number else 1)
    last = out.splitlines()[-1]
    assert last == "stopped before the first frame" if number else last.startswith("failed: a: ")
    assert summary(tmp_path)["status"]["state"] == ("stopped" if number else "ended")


def test_a_recording_that_is_cut_off_is_named(start: Start, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", frames=60).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    process = start("--offline", "--feed", f"yard={tmp_path / 'cut.mkv'}")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out.splitlines()[-1].startswith("failed: a: feed yard: ends after ")
    found = summary(tmp_path)
    assert found["queries"]["a"]["processed"] > 0
    assert set(found["status"]["failures"]) == {"a", "b"}


def test_nobody_reads_the_output(start: Start, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    process = start("--offline", "--frames", "3", stdout=writer)
    os.close(reader)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert summary(tmp_path)["status"]["state"] == "ended"


def test_the_output_is_on_a_full_disk(start: Start, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = start("--offline", "--frames", "3", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.endswith(" warning standard output: No space left on device; nothing is printed from now on\n")
    assert err.count("\n") == 1
    assert summary(tmp_path)["status"]["state"] == "ended"


def test_no_output_at_all(start: Start, tmp_path: Path) -> None:
    def close() -> None:
        os.close(1)
        os.close(2)

    process = start("--offline", "--frames", "3", preexec_fn=close, stdout=None, stderr=None)
    assert process.wait(60) == 0
    assert summary(tmp_path)["status"]["state"] == "ended"


def test_a_summary_on_a_full_disk_is_a_failure(prepared: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [BIN / "gemel-run", prepared, "--offline", "--frames", "3", "--json", "/dev/full"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "failed: summary: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("gemel inspect b | head -1", 0, ""),
        ("gemel inspect b | true", 0, ""),
        ("gemel inspect b > /dev/full", 1, "error: standard output: No space left on device\n"),
        ("gemel inspect missing 2> /dev/full", 2, ""),
        ("gemel inspect b >&-", 0, ""),
    ],
)
def test_the_output_of_other_commands(shell: str, status: int, said: str, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to(prepared)
    script = shell.replace("gemel", str(BIN / "gemel"), 1)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert (done.returncode, done.stderr) == (status, said)


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run gemel-run in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["gemel-run", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        run_main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize("frames", [2, 30])
def test_a_query_that_fails_on_every_frame_is_named(
    frames: int, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Inference.__call__

    def fails(self: Inference, pairs: Sequence[tuple[str, Frame]]) -> Iterator[Result | Exception]:
        if pairs[0][0] == "b":
            raise ValueError("shape mismatch")
        return answer(self, pairs)

    monkeypatch.setattr(Inference, "__call__", fails)
    path = tmp_path / "summary.json"
    assert run_here(monkeypatch, bundle, "--offline", "--frames", str(frames), "--json", path) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "failed: b: ValueError: shape mismatch"
    found = summary(tmp_path)
    assert found["status"]["failures"] == {"b": "ValueError: shape mismatch"}
    assert found["queries"]["b"]["given_up"] == (1 if frames > 10 else 0)


def test_a_bug_leaves_a_summary(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("gemel.runtime.planning.conductor.Conductor.run", breaks)
    monkeypatch.setattr(sys, "argv", ["gemel-run", str(bundle), "--json", str(tmp_path / "summary.json")])
    with pytest.raises(RuntimeError, match="a bug"):
        run_main()
    status = summary(tmp_path)["status"]
    assert (status["state"], status["error"]) == ("failed", "RuntimeError: a bug")


def test_bad_input_is_2(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_here(monkeypatch, bundle, "--feed", "nothing=x.mp4") == 2
    assert run_here(monkeypatch, bundle, "--json", tmp_path / "file" / "summary.json", "--frames", "0") == 2
    shutil.rmtree(bundle)
    assert run_here(monkeypatch, bundle) == 2

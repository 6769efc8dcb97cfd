"""summary.json is there and whole at any time of a run: while it goes on, when it ends, fails, or the disk is full."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from gemel.runtime.loop import summary_file
from gemel.runtime.loop.summary import FeedStats, QueryStats, RunStats, Summary
from gemel.runtime.loop.summary_file import SummaryFile


def summary(processed: int = 3, **changes: Any) -> Summary:
    return Summary(RunStats(1.0, {"q": QueryStats("f", 5, processed)}, {"f": FeedStats(5)}), "ort-cpu", **changes)


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def wait_for(condition: Callable[[], bool]) -> None:
    ends = monotonic() + 10
    while not condition():
        assert monotonic() < ends
        sleep(0.005)


def test_it_is_written_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_file, "_EVERY_S", 0.01)
    path, processed = tmp_path / "summary.json", [0]

    def summarise() -> Summary:
        processed[0] += 1
        return summary(processed[0])

    file = SummaryFile(path)
    file.start(summarise)
    wait_for(lambda: processed[0] > 5)
    found = read(path)
    assert found["status"]["state"] == "running" and found["queries"]["q"]["processed"] > 0
    file.finish(summary(5))
    found = read(path)
    assert (found["status"]["state"], found["status"]["error"], found["status"]["failures"]) == ("ended", None, {})
    assert found["status"]["started"] <= found["status"]["at"]
    assert found["queries"]["q"]["processed"] == 5
    sleep(0.05)
    assert read(path) == found
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("changes", "error", "state", "said"),
    [
        ({"stopped": True}, None, "stopped", None),
        ({"stopped": True}, ValueError("shape\nmismatch"), "failed", "ValueError: shape"),
        ({}, KeyboardInterrupt(), "failed", "KeyboardInterrupt: KeyboardInterrupt"),
    ],
)
def test_states(
    changes: dict[str, bool], error: BaseException | None, state: str, said: str | None, tmp_path: Path
) -> None:
    file = SummaryFile(tmp_path / "summary.json")
    file.finish(summary(**changes), error)
    status = read(tmp_path / "summary.json")["status"]
    assert (status["state"], status["error"]) == (state, said)


def test_a_full_disk_leaves_the_last_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "summary.json"
    file = SummaryFile(path)
    file.finish(summary(1))
    before, full = read(path), True
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for _ in range(3):
        file.finish(summary(2))
        assert file.error == "No space left on device"
    assert read(path) == before
    full = False
    file.finish(summary(2))
    assert file.error is None and read(path)["queries"]["q"]["processed"] == 2
    assert caplog.messages == [f"{path}: cannot be written: No space left on device", f"{path}: is written again"]


def test_statistics_that_fail_do_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = SummaryFile(tmp_path / "summary.json")
    file.start(lambda: summary(1 // 0))
    wait_for(lambda: bool(caplog.messages))
    file.finish(summary(5))
    assert read(tmp_path / "summary.json")["status"]["state"] == "ended"


def test_a_pipe_gets_one_summary(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    file = SummaryFile(tmp_path / "pipe")
    file.start(summary)
    file.finish(summary())
    assert json.loads(os.read(reader, 1 << 16))["status"]["state"] == "ended"
    os.close(reader)


def test_nothing_is_written_unasked() -> None:
    file = SummaryFile(None)
    file.start(summary)
    file.finish(summary())
    assert file.error is None

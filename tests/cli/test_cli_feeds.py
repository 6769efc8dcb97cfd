"""Feeds of the commands: exit status and messages of recordings, cameras and variables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cameras import HttpCamera, jpeg
from helpers import call, write_video

Gemel = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def set_source(bundle: Path, source: str) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    document["feeds"]["yard"]["source"] = source
    path.write_text(json.dumps(document))


def run(gemel: Gemel, bundle: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run a bundle; return exit status, summary.json and everything printed."""
    summary = bundle.parent / "summary.json"
    status, out, err = gemel("run", bundle, "--json", summary, *arguments)
    return status, json.loads(summary.read_text()), out + err


def test_a_recording_that_is_cut_off_is_a_failure(gemel: Gemel, bundle: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.mkv", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status, summary, printed = run(gemel, bundle, "--offline", "--feed", f"yard={path}")
    assert status == 1
    assert summary["feeds"]["yard"]["state"] == "failed"
    assert "truncated or damaged" in printed
    for query in summary["queries"].values():
        assert query["frames"] == query["processed"] + query["skipped"]
    assert summary["queries"]["a"]["processed"] > 5


def test_names_that_are_not_utf8(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in (b"Stra\xdfe.jpg", b"a.jpg"):
        (folder / os.fsdecode(name)).write_bytes(cv2.imencode(".jpg", np.zeros((32, 32, 3), np.uint8))[1].tobytes())
    found = call("gemel-run", bundle, "--offline", "--feed", f"yard={folder}", "--json", tmp_path / "s.json")
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads((tmp_path / "s.json").read_text())["queries"]["a"]["processed"] == 2


def test_a_source_that_was_mistyped(gemel: Gemel, bundle: Path) -> None:
    status, _, err = gemel("run", bundle, "--offline", "--feed", "yard=/nowhere/a.mp4")
    assert status == 2
    assert err.startswith("error: feed 'yard': source '/nowhere/a.mp4' does not exist")
    status, _, err = gemel("run", bundle, "--feed", "rtsp://me:s3cr3t@host/live")
    assert status == 2
    assert "s3cr3t" not in err


class TestVariables:
    def test_a_bundle_from_elsewhere_reads_no_secret(
        self, gemel: Gemel, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_TOKEN", "s3cr3t")
        with HttpCamera([jpeg()]) as camera:
            set_source(bundle, f"{camera.url}/mjpeg?${{SECRET_TOKEN:-x}}")
            status, summary, printed = run(gemel, bundle, "--duration", "1")
            assert status == 1
            assert camera.asked == []
            assert "environment variable SECRET_TOKEN is not allowed" in printed
            assert "--env SECRET_TOKEN" in printed
            status, summary, printed = run(gemel, bundle, "--duration", "1", "--env", "SECRET_TOKEN")
            assert status == 0
            assert set(camera.asked) == {"/mjpeg?s3cr3t"}
            assert "s3cr3t" not in printed + json.dumps(summary)

    def test_a_bundle_that_was_compiled_here(
        self, gemel: Gemel, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with HttpCamera([jpeg()]) as camera:
            path = bundle_folder / "workload.yaml"
            document = json.loads(path.read_text())
            document["feeds"]["yard"]["source"] = "http://${CAMERA}/mjpeg"
            path.write_text(json.dumps(document))
            status, out, _ = gemel("compile", path, "-o", bundle_folder / "other")
            assert status == 0
            assert "CAMERA: filled in when the bundle runs" in out
            monkeypatch.setenv("CAMERA", f"127.0.0.1:{camera.port}")
            status, summary, _ = run(gemel, bundle_folder / "other", "--duration", "1")
            assert status == 0
            assert summary["feeds"]["yard"]["frames"] > 0
            assert summary["feeds"]["yard"]["state"] == "running"

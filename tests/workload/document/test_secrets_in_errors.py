"""Errors about a workload never repeat an address, which may hold a password, wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemel.errors import WorkloadError
from gemel.workload import load_workload

ADDRESS = "rtsp://me:s3cr3t@camera:554/live?pwd=s3cr3t"


@pytest.mark.parametrize(
    "feed",
    [
        ADDRESS,
        f"['{ADDRESS}']",
        f"{{source: ['{ADDRESS}', b.mp4]}}",
        f"{{source: '{ADDRESS}', fps: '{ADDRESS}'}}",
        f"{{source: '{ADDRESS}', transport: '{ADDRESS}'}}",
        f"{{source: '{ADDRESS}', timeout: '{ADDRESS}'}}",
        f"{{'{ADDRESS}': 1}}",
    ],
)
def test_an_address_in_the_wrong_place(tmp_path: Path, feed: str) -> None:
    path = tmp_path / "workload.yaml"
    path.write_text(
        f'schema_version: "1"\nfeeds:\n  gate: {feed}\n'
        "queries:\n  - {name: a, feed: gate, task: raw, model: {onnx: a.onnx}}\n"
    )
    with pytest.raises(WorkloadError) as caught:
        load_workload(path)
    assert "s3cr3t" not in str(caught.value)
    assert "rtsp://camera:554" in str(caught.value) or "duration" in str(caught.value)


@pytest.mark.parametrize(("timeout", "seconds"), [("20", 20), ("20s", 20), ("1m", 60), ("500ms", 0.5)])
def test_feed_settings(tmp_path: Path, timeout: str, seconds: float) -> None:
    path = tmp_path / "workload.yaml"
    path.write_text(
        f'schema_version: "1"\nfeeds:\n  gate: {{source: "{ADDRESS}", transport: udp, timeout: {timeout},'
        " hardware: auto}\nqueries:\n  - {name: a, feed: gate, task: raw, model: {onnx: a.onnx}}\n"
    )
    feed = load_workload(path).feeds["gate"]
    assert (feed.transport, feed.timeout, feed.hardware) == ("udp", seconds, "auto")


@pytest.mark.parametrize("setting", ["transport: tpc", "timeout: 0", "timeout: fast", "timeout: 2h", "hardware: gpu"])
def test_settings_that_are_not_allowed(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "workload.yaml"
    path.write_text(
        f'schema_version: "1"\nfeeds:\n  gate: {{source: a.mp4, {setting}}}\n'
        "queries:\n  - {name: a, feed: gate, task: raw, model: {onnx: a.onnx}}\n"
    )
    with pytest.raises(WorkloadError, match=r"workload\.yaml:3: feeds\.gate\.(transport|timeout|hardware): "):
        load_workload(path)

"""Outputs of ``gemel-run``: from the workload to the files, replaced by flags, and broken ones that stop nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import BIN, call, query, save, write_video
from tiny_models import tiny

from gemel.bundles.output_specs import RotateSpec
from gemel.bundles.reader import MANIFEST
from gemel.runtime.sinks.jsonl import JsonlWriter

Call = Callable[..., tuple[int, str, str]]
NEVER = RotateSpec(size=None, age=None, keep=None)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def set_outputs(bundle: Path, *outputs: dict[str, Any]) -> None:
    """Put outputs into the manifest of a bundle."""
    document = json.loads((bundle / MANIFEST).read_text())
    document["outputs"] = outputs
    (bundle / MANIFEST).write_text(json.dumps(document))


def test_from_the_workload_to_the_files(gemel: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "yard.mp4", frames=4)
    save(tiny(0), tmp_path / "a.safetensors")
    document = {
        "schema_version": "1",
        "feeds": {"yard": {"source": "yard.mp4"}},
        "queries": [query("a", labels=["red", "green", "blue"])],
        "outputs": [
            {"jsonl": {"path": "${GEMEL_SITE}/r.jsonl", "rotate": "1kB"}},
            {"video": {"folder": "videos", "segment": "1s"}},
            {"snapshots": {"folder": "pictures", "labels": ["red", "green", "blue"], "cooldown": 0}},
        ],
    }
    (tmp_path / "workload.yaml").write_text(json.dumps(document))
    code, _, err = gemel("compile", tmp_path / "workload.yaml", "-o", tmp_path / "bundle")
    assert code == 0, err
    # Relative paths are those of the run, not of the workload.
    (tmp_path / "box").mkdir()
    monkeypatch.chdir(tmp_path / "box")
    monkeypatch.setenv("GEMEL_SITE", "north")
    code, out, err = gemel("run", tmp_path / "bundle", "--offline", "--json", "s.json")
    assert code == 0, err
    assert "  output  jsonl: ${GEMEL_SITE}/r.jsonl" in out
    box = tmp_path / "box"
    assert len([row for path in (box / "north").iterdir() for row in lines(path)]) == 4
    assert [path.name for path in (box / "videos").iterdir()] == ["yard.mp4"]
    assert len(list((box / "pictures").iterdir())) == 4
    outputs = json.loads((box / "s.json").read_text())["outputs"]
    assert {name: (each["offered"], each["written"]) for name, each in outputs.items()} == {
        "jsonl": (4, 4),
        "video": (4, 4),
        "snapshots": (4, 4),
    }
    code, out, err = gemel("run", tmp_path / "bundle", "--offline", "--outputs", "none", "--json", "s.json")
    assert (code, json.loads((box / "s.json").read_text())["outputs"]) == (0, {})
    assert "output" not in out
    (box / "other.yaml").write_text("outputs:\n  - jsonl: {path: other.jsonl}\n")
    code, out, err = gemel("run", tmp_path / "bundle", "--offline", "--outputs", "other.yaml", "--json", "s.json")
    assert code == 0, err
    assert len(lines(box / "other.jsonl")) == 4
    # Outputs of a whole workload are taken as well.
    (box / "workload.yaml").write_text(json.dumps(document | {"outputs": [{"jsonl": {"path": "third.jsonl"}}]}))
    code, _, err = gemel("run", tmp_path / "bundle", "--offline", "--outputs", "workload.yaml")
    assert code == 0, err
    assert len(lines(box / "third.jsonl")) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "outputs:\n  - jsonl: {path: r.txt}\n",
            "o.yaml:2: outputs[0].jsonl.path: 'r.txt' is not allowed: a file that",
        ),
        ("- jsonl: {path: r.jsonl}\n", "o.yaml: a mapping is expected: begin the file with outputs:"),
        ("output: []\n", "o.yaml:1: output: unknown key 'output'; did you mean 'outputs'?"),
        ("outputs: [\n", "o.yaml:2: not YAML: "),
        ("", "o.yaml: a mapping is expected: begin the file with outputs:"),
        (
            "outputs:\n  - mqtt: {url: 'mqtt://box:s3cret@h'}\n",
            "o.yaml:2: outputs[0].mqtt.url: a password does not belong in a file: write ${GEMEL_PASSWORD}",
        ),
        ("outputs:\n  - webhook: {url: 'http://h/${NOT_SET_HERE}'}\n", "environment variable NOT_SET_HERE is not set"),
    ],
)
def test_mistakes_in_the_file(gemel: Call, bundle: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "o.yaml").write_text(text)
    code, _, err = gemel("run", bundle, "--offline", "--outputs", tmp_path / "o.yaml")
    assert code == 2
    assert message in err and "s3cret" not in err
    assert err.startswith("error: ") and err.count("\n") == 1
    code, _, err = gemel("run", bundle, "--offline", "--outputs", tmp_path / "none.yaml")
    assert (code, err) == (2, f"error: {tmp_path}/none.yaml: cannot be read: No such file or directory\n")


def test_results_on_the_standard_output(bundle: Path, tmp_path: Path) -> None:
    done = call("gemel-run", bundle, "--offline", "--results", "-", "--json", tmp_path / "s.json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 30
    run = json.loads((tmp_path / "s.json").read_text())["run"]
    assert {row["run"] for row in rows} == {run}
    assert "processed" in done.stderr and "Next: gemel inspect" in done.stderr
    set_outputs(bundle, {"jsonl": {"path": "-"}})
    done = call("gemel-run", bundle, "--offline")
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 30


def test_a_reader_that_goes_away_stops_nothing(bundle: Path, tmp_path: Path) -> None:
    command = [str(BIN / "gemel-run"), str(bundle), "--offline", "--results", "-", "--json", str(tmp_path / "s.json")]
    read, writing = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert done.returncode == 1
    assert "failed: output jsonl: Broken pipe" in done.stderr
    summary = json.loads((tmp_path / "s.json").read_text())
    assert {name: found["processed"] for name, found in summary["queries"].items()} == {"a": 12, "b": 12, "c": 6}
    assert summary["outputs"]["jsonl"]["offered"] == summary["outputs"]["jsonl"]["dropped"] == 30


def test_a_restart_appends_and_a_second_run_is_refused(gemel: Call, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for _ in range(2):
        assert gemel("run", bundle, "--offline", "--results", path)[0] == 0
    rows = lines(path)
    assert len(rows) == 60 and len({row["run"] for row in rows}) == 2
    assert all(abs(row["at"] - rows[0]["at"]) < 3600 for row in rows)
    holder = JsonlWriter(path, NEVER)
    code, _, err = gemel("run", bundle, "--offline", "--results", path)
    holder.close()
    assert code == 2
    assert err == f"error: {path}: another run writes results to this file; give each run a file of its own\n"
    assert len(lines(path)) == 60


@pytest.mark.parametrize("where", ["/dev/full", "/proc/none/r.jsonl", "file/r.jsonl"])
def test_results_that_cannot_be_written_stop_nothing(bundle: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / where
    done = call("gemel-run", bundle, "--offline", "--results", path, "--json", tmp_path / "s.json")
    assert done.returncode == 1
    summary = json.loads((tmp_path / "s.json").read_text())
    assert {name: found["processed"] for name, found in summary["queries"].items()} == {"a": 12, "b": 12, "c": 6}
    found = summary["outputs"]["jsonl"]
    assert (found["offered"], found["written"], found["dropped"], found["state"]) == (30, 0, 30, "failing")
    (line,) = [line for line in done.stderr.splitlines() if "output jsonl" in line]
    assert str(path.parent.parent if where == "/proc/none/r.jsonl" else path.parent) in line
    assert "failed: output jsonl: " in done.stdout


def test_videos_on_a_full_disk_stop_nothing(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "v").write_text("in the way")
    done = call(
        *("gemel-run", bundle, "--offline", "--video", tmp_path / "v"),
        *("--results", tmp_path / "r.jsonl", "--json", tmp_path / "s.json"),
    )
    assert done.returncode == 1
    outputs = json.loads((tmp_path / "s.json").read_text())["outputs"]
    assert (outputs["video"]["dropped"], outputs["video"]["state"]) == (18, "failing")
    assert (outputs["jsonl"]["written"], len(lines(tmp_path / "r.jsonl"))) == (30, 30)


def test_no_secret_is_printed(bundle: Path, tmp_path: Path) -> None:
    set_outputs(
        bundle,
        {"webhook": {"url": "http://127.0.0.1:9/hook-s3cret?key=s3cret", "headers": {"X-Key": "${GEMEL_KEY}"}}},
        {"webhook": {"url": "http://box:${GEMEL_KEY}@127.0.0.1:9/"}},
    )
    done = call("gemel-run", bundle, "--offline", "--json", tmp_path / "s.json", GEMEL_KEY="s3cret")
    assert done.returncode == 1
    everything = done.stdout + done.stderr + (tmp_path / "s.json").read_text()
    assert "s3cret" not in everything
    assert "output webhook (http://127.0.0.1:9): Connection refused" in done.stderr
    assert "output webhook-2 (http://127.0.0.1:9): Connection refused" in done.stderr
    assert re.search(r"output webhook: 0 written, 30 dropped, 0 failed,\s+Connection refused", done.stdout)


def test_a_bundle_may_not_read_the_environment(bundle: Path) -> None:
    set_outputs(bundle, {"webhook": {"url": "http://127.0.0.1:9/${SECRET_OF_USER}"}})
    done = call("gemel-run", bundle, "--offline", SECRET_OF_USER="s3cret")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: outputs[0].webhook: environment variable SECRET_OF_USER is not allowed in a bundle from elsewhere"
    )

"""Files of results: appended to by one run, whole lines, parts of limited size and age, and the standard output."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from sink_events import BOX, INFO, NOON, event

from gemel.bundles.output_specs import RotateSpec
from gemel.errors import InputError
from gemel.runtime.decode.results import Class, Embedding, Raw, Result
from gemel.runtime.sinks import parts
from gemel.runtime.sinks.events import SinkEvent
from gemel.runtime.sinks.jsonl import JsonlWriter, StdoutWriter

NEVER = RotateSpec(size=None, age=None, keep=None)


def write(writer: JsonlWriter | StdoutWriter, *events: SinkEvent) -> None:
    """Write events, all of which must be written."""
    batch = deque(events)
    writer.write(batch)
    assert not batch


def rows(path: Path) -> list[dict[str, object]]:
    """Return the lines of a file of results."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_for_each_result(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    writer = JsonlWriter(path, NEVER)
    write(writer, event(3))
    # Written at once and whole, so that a killed run leaves a readable file.
    assert rows(path) == [
        {
            "schema": "1",
            "run": INFO.run,
            "at": NOON + 0.3,
            "query": "people",
            "feed": "yard",
            "frame": 3,
            "time": 0.3,
            "latency_ms": 12.346,
            "result": [{"box": list(BOX), "score": 0.87, "label": "person"}],
        }
    ]
    others: tuple[Result, ...] = ((Class("Straße\n", 0.5),), Embedding((0.25, -1.0)), (Class("\ud800", 1),))
    write(writer, *(event(number, result) for number, result in enumerate(others, 4)))
    writer.close()
    assert [row["result"] for row in rows(path)[1:]] == [
        [{"label": "Straße\n", "score": 0.5}],
        [0.25, -1.0],
        [{"label": "\ud800", "score": 1}],
    ]


def test_what_json_does_not_have_becomes_null(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "r.jsonl", NEVER)
    write(writer, event(0, Embedding((math.nan, 1.0, math.inf))))
    assert rows(tmp_path / "r.jsonl")[0]["result"] == [None, 1.0, None]


def test_a_restart_appends(tmp_path: Path) -> None:
    for index in range(3):
        writer = JsonlWriter(tmp_path / "r.jsonl", NEVER)
        write(writer, event(index))
        writer.close()
    assert [row["frame"] for row in rows(tmp_path / "r.jsonl")] == [0, 1, 2]


def test_a_second_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    first = JsonlWriter(path, NEVER)
    with pytest.raises(InputError) as caught:
        JsonlWriter(path, NEVER)
    assert str(caught.value) == f"{path}: another run writes results to this file; give each run a file of its own"
    first.close()
    JsonlWriter(path, NEVER).close()


def test_an_unfinished_line_of_a_crash_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    writer = JsonlWriter(path, NEVER)
    write(writer, event(0))
    writer.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    writer = JsonlWriter(path, NEVER)
    write(writer, event(1))
    writer.close()
    assert [row["frame"] for row in rows(path)] == [0, 1]


def test_other_text_in_the_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("notes of somebody")
    writer = JsonlWriter(path, NEVER)
    write(writer, event(0))
    writer.close()
    first, second = path.read_text().splitlines()
    assert first == "notes of somebody" and json.loads(second)["frame"] == 0


def test_parts_of_limited_size(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    one = len(event(0).line())
    writer = JsonlWriter(path, RotateSpec(size=int(2.5 * one), keep=2))
    for index in range(10):
        write(writer, event(index))
    writer.close()
    old = sorted(each for each in tmp_path.iterdir() if each != path)
    assert [[row["frame"] for row in rows(each)] for each in (*old, path)] == [[4, 5], [6, 7], [8, 9]]
    assert all(re.fullmatch(r"r-\d{8}T\d{6}\.\d{3}Z\.jsonl", each.name) for each in old)


def test_parts_of_limited_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    monkeypatch.setattr(parts, "time", lambda: NOON + 50)
    writer = JsonlWriter(path, RotateSpec(age=100))
    write(writer, event(0))
    writer.close()
    # The age counts from the first line, also over restarts.
    writer = JsonlWriter(path, RotateSpec(age=100))
    monkeypatch.setattr(parts, "time", lambda: NOON + 99)
    write(writer, event(1))
    monkeypatch.setattr(parts, "time", lambda: NOON + 101)
    write(writer, event(2))
    writer.close()
    assert [row["frame"] for row in rows(path)] == [2]
    assert [row["frame"] for row in rows(tmp_path / "r-20261127T120141.000Z.jsonl")] == [0, 1]


def test_a_part_that_begins_anew_stays_locked(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    writer = JsonlWriter(path, RotateSpec(size=10))
    for index in range(3):
        write(writer, event(index))
        with pytest.raises(InputError, match="another run writes"):
            JsonlWriter(path, NEVER)
    writer.close()


def test_parts_on_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    writer = JsonlWriter(tmp_path / "r.jsonl", RotateSpec(size=10))
    for index in range(3):
        write(writer, event(index))
    writer.close()
    assert sorted(row["frame"] for each in tmp_path.iterdir() for row in rows(each)) == [0, 1, 2]  # type: ignore[type-var]


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    writer = JsonlWriter(path, NEVER)
    write(writer, event(0))
    path.rename(tmp_path / "moved.jsonl")  # as logrotate does
    write(writer, event(1))
    path.unlink()
    write(writer, event(2))
    writer.close()
    assert [row["frame"] for row in rows(path)] == [2]
    assert [row["frame"] for row in rows(tmp_path / "moved.jsonl")] == [0]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    writer = JsonlWriter(path, NEVER)
    write(writer, event(0))
    real, room = os.write, 30

    def little(fd: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        count = real(fd, bytes(data)[:room])
        room -= count
        return count

    batch = deque([event(1), event(2)])
    monkeypatch.setattr(os, "write", little)
    with pytest.raises(OSError, match="No space left"):
        writer.write(batch)
    monkeypatch.undo()
    assert len(batch) == 2
    assert [row["frame"] for row in rows(path)] == [0]
    writer.write(batch)
    writer.close()
    assert [row["frame"] for row in rows(path)] == [0, 1, 2]


def test_a_folder_that_comes_later(tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("in the way")
    writer = JsonlWriter(tmp_path / "disk" / "r.jsonl", NEVER)
    batch = deque([event(0)])
    with pytest.raises(OSError):
        writer.write(batch)
    (tmp_path / "disk").unlink()
    writer.write(batch)
    writer.close()
    assert len(rows(tmp_path / "disk" / "r.jsonl")) == 1


def test_large_outputs_are_files_beside_the_results(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    writer = JsonlWriter(path, NEVER)
    large = np.arange(5000, dtype=np.float32).reshape(1, 5000)
    words = np.array(["x"] * 5000, object)
    raw = Raw({"small": np.array([1.5]), "../large/a": large, "../large/b": large * 2, "words": words})
    write(writer, event(3, raw, query="../q"))
    result: dict[str, dict[str, object]] = rows(path)[0]["result"]  # type: ignore[assignment]
    assert result["small"] == {"dtype": "float64", "shape": [1], "values": [1.5]}
    files = {name: tmp_path / str(each["file"]) for name, each in result.items() if "file" in each}
    assert {file.parent for file in files.values()} == {tmp_path / "results-raw"}
    assert sorted((tmp_path / "results-raw").iterdir()) == sorted(files.values())
    assert all(file.name.startswith(INFO.run) for file in files.values())
    assert (np.load(files["../large/a"]) == large).all()
    assert (np.load(files["../large/b"]) == large * 2).all()
    assert np.load(files["words"]).tolist() == words.tolist()


def test_large_outputs_go_with_their_part(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "r.jsonl", RotateSpec(size=10, keep=1))
    for index in range(4):
        write(writer, event(index, Raw({"large": np.zeros(5000)})))
    writer.close()
    assert sorted(each.name.split("-")[-3] for each in (tmp_path / "r-raw").iterdir()) == ["000002", "000003"]


def test_an_event_that_is_no_json_is_the_first_of_what_is_left(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "r.jsonl", NEVER)
    batch = deque([event(0), event(1, (Class("x", object()),)), event(2)])  # type: ignore[arg-type]
    writer.write(batch)
    assert [each.frame.index for each in batch] == [1, 2]
    with pytest.raises(TypeError):
        writer.write(batch)
    batch.popleft()
    writer.write(batch)
    assert [row["frame"] for row in rows(tmp_path / "r.jsonl")] == [0, 2]


def test_pipes_and_devices(tmp_path: Path) -> None:
    full = JsonlWriter(Path("/dev/full"), NEVER)
    with pytest.raises(OSError, match=r"No space left.*/dev/full"):
        full.write(deque([event(0)]))
    os.mkfifo(tmp_path / "pipe.jsonl")
    writer = JsonlWriter(tmp_path / "pipe.jsonl", NEVER)
    batch = deque([event(0)])
    with pytest.raises(OSError, match="No such device"):
        writer.write(batch)  # nobody reads
    reader = os.open(tmp_path / "pipe.jsonl", os.O_RDONLY | os.O_NONBLOCK)
    writer.write(batch)
    assert json.loads(os.read(reader, 65536))["frame"] == 0
    os.close(reader)
    writer.close()


def test_the_standard_output_goes_on_in_the_middle_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    read, writing = os.pipe()
    writer = StdoutWriter()
    os.dup2(writing, writer._fd)
    os.set_blocking(read, False)
    os.set_blocking(writing, False)
    batch = deque(event(index) for index in range(2000))
    got = b""
    while batch:
        with suppress(BlockingIOError):
            writer.write(batch)
        got += os.read(read, 1 << 16)
    writer.close()
    assert [json.loads(line)["frame"] for line in got.splitlines()] == list(range(2000))


def test_a_closed_pipe_is_an_error_and_no_signal() -> None:
    script = (
        "import os, sys\nsys.path[:0] = [sys.argv[1]]\nfrom collections import deque\nfrom sink_events import event\n"
        "from gemel.runtime.sinks.jsonl import StdoutWriter\n"
        "try: StdoutWriter().write(deque([event(0)]))\nexcept BrokenPipeError: print('broken', file=sys.stderr)\n"
        "os._exit(7)"
    )
    read, writing = os.pipe()
    os.close(read)
    tests = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", script, tests], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (7, "broken\n")


KILLED = """
import sys, time
sys.path[:0] = [sys.argv[2]]
from sink_events import INFO, PEOPLE, QUERIES, frame
from gemel.bundles.output_specs import JsonlSpec, OutputSpec, RotateSpec
from gemel.runtime.sinks import open_outputs
spec = JsonlSpec(path=sys.argv[1], rotate=RotateSpec(size=5000, keep=None))
outputs = open_outputs([OutputSpec(jsonl=spec)], QUERIES, INFO)
for index in range(100_000):
    outputs.on_result("people", frame(index), PEOPLE, 1.0)
    print(index, flush=True)
    time.sleep(0.01)
"""


@pytest.mark.parametrize("results", [5, 130])
def test_a_kill_loses_less_than_a_second_and_leaves_whole_lines(tmp_path: Path, results: int) -> None:
    path, tests = tmp_path / "r.jsonl", str(Path(__file__).resolve().parents[2])
    for _ in range(2):
        command = [sys.executable, "-c", KILLED, str(path), tests]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= results:
                    break
            process.kill()
            seen = max([int(line), *map(int, process.stdout.read().split())])
        files = sorted(each for each in tmp_path.iterdir() if each.name[0] != ".")
        frames = {int(str(row["frame"])) for file in files for row in rows(file)}
        # At most 100 results come in a second.
        assert frames == set(range(len(frames))) and len(frames) >= min(seen, results) - 100
    # The lock of a killed run is gone with it.
    JsonlWriter(path, NEVER).close()

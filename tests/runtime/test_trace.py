"""Traces have the form that viewers read."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from time import monotonic
from typing import Any

import pytest

from gemel.errors import InputError
from gemel.runtime import trace as module
from gemel.runtime.trace import Trace


def written(trace: Trace, path: Path) -> list[dict[str, Any]]:
    trace.write(path)
    document = json.loads(path.read_text())
    assert set(document) == {"traceEvents", "displayTimeUnit"}
    found: list[dict[str, Any]] = document["traceEvents"]
    for event in found:
        assert {"name", "ph", "pid", "tid", "args"} <= set(event)
        assert event["ph"] in "MX"
        assert event["ph"] == "M" or (event["ts"] >= 0 and event["dur"] >= 0)
    return found


def lanes(events: list[dict[str, Any]]) -> dict[int, str]:
    return {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}


def test_spans_lie_in_lanes_in_microseconds(tmp_path: Path) -> None:
    trace = Trace()
    began = monotonic()
    trace.span("run", "a", began, began + 0.25, frame=7)
    trace.span("load", "straße", began + 0.5, began + 0.5)
    trace.span("run", "b", began + 1, began + 2)
    events = written(trace, tmp_path / "trace.json")
    assert lanes(events) == {0: "run", 1: "load"}
    assert events[0] == {"name": "process_name", "ph": "M", "pid": 0, "tid": 0, "args": {"name": "gemel"}}
    spans = [event for event in events if event["ph"] == "X"]
    assert [(span["tid"], span["name"], span["args"]) for span in spans] == [
        (0, "a", {"frame": 7}),
        (1, "straße", {}),
        (0, "b", {}),
    ]
    assert [span["dur"] for span in spans] == pytest.approx([250_000, 0, 1_000_000])
    assert [span["ts"] - spans[0]["ts"] for span in spans] == pytest.approx([0, 500_000, 1_000_000])


def test_a_trace_in_which_nothing_happened(tmp_path: Path) -> None:
    assert [event["name"] for event in written(Trace(), tmp_path / "trace.json")] == ["process_name"]


def test_any_thread_may_tell(tmp_path: Path) -> None:
    trace, begin = Trace(), Barrier(8)

    def tell(number: int) -> None:
        begin.wait()
        for index in range(200):
            trace.span(f"lane {(number + index) % 16}", f"{number}-{index}", monotonic(), monotonic())
            if index % 50 == 0:
                trace.write(tmp_path / f"{number}.json")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tell, range(8)))
    events = written(trace, tmp_path / "trace.json")
    names = lanes(events)
    assert sorted(names.values()) == sorted(f"lane {number}" for number in range(16))
    spans = {event["name"]: names[event["tid"]] for event in events if event["ph"] == "X"}
    assert spans == {f"{n}-{i}": f"lane {(n + i) % 16}" for n in range(8) for i in range(200)}


def test_no_more_spans_are_kept_than_memory_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 3)
    trace = Trace()
    for index in range(5):
        trace.span("run", str(index), trace._began, trace._began + 1)
    assert [event["name"] for event in written(trace, tmp_path / "trace.json") if event["ph"] == "X"] == list("012")
    assert trace.dropped == 2


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no/trace\.json: cannot write the trace: No such file or directory"):
        Trace().write(tmp_path / "no" / "trace.json")
    with pytest.raises(InputError, match="cannot write the trace: Is a directory"):
        Trace().write(tmp_path)

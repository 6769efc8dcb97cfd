"""Runs of a bundle: every query is answered, and a broken feed concerns its own queries only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from gemel.bundles.budget import budget, parse_memory
from gemel.bundles.manifest import InputSpec
from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.errors import BackendError, FeedError, InputError
from gemel.frames.frame import Image
from gemel.frames.preprocess import preprocess
from gemel.runtime.backends import Backend
from gemel.runtime.loop import deployment, device_profile, prepared_frames
from gemel.runtime.loop.measure_times import Times
from gemel.runtime.planning.planner import POLICIES
from gemel.runtime.planning.profile import Profile
from gemel.runtime.run import RunOptions, run_bundle


def test_offline_sees_every_frame(bundle: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    summary = run_bundle(
        open_bundle(bundle), RunOptions(offline=True, results=results, video=tmp_path / "video")
    ).to_json()
    assert {name: (q["frames"], q["processed"], q["skipped"]) for name, q in summary["queries"].items()} == {
        "a": (12, 12, 0),
        "b": (12, 12, 0),
        "c": (6, 6, 0),  # its feed has half the rate
    }
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == 30
    assert set(rows[0]) == {"schema", "run", "at", "query", "feed", "frame", "time", "latency_ms", "result"}
    assert {row["run"] for row in rows} == {summary["run"]}
    assert len(rows[0]["result"]) == 3
    assert sum(item["score"] for item in rows[0]["result"]) == pytest.approx(1, abs=1e-3)
    assert sorted(path.name for path in (tmp_path / "video").iterdir()) == ["gate.mp4", "yard.mp4"]
    assert {name: (found["written"], found["state"]) for name, found in summary["outputs"].items()} == {
        "jsonl": (30, "working"),
        "video": (18, "working"),
    }
    assert summary["backend"] == "ort-cpu"
    assert 0 < summary["memory"]["peak"] <= summary["memory"]["budget"]
    # All weights fit, and were loaded before the run began.
    assert summary["swaps"] == {"count": 0, "bytes": 0, "blocked_ms": 0.0}


def test_queries_of_one_model_and_frame_agree(bundle: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    run_bundle(open_bundle(bundle), RunOptions(offline=True, results=results))
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    by_time = {(row["query"], row["time"]): row["result"] for row in rows}
    assert by_time["a", 0.0] == by_time["c", 0.0] != by_time["b", 0.0]


def test_live(bundle: Path) -> None:
    summary = run_bundle(open_bundle(bundle), RunOptions(frames=5)).to_json()
    for query in summary["queries"].values():
        assert query["frames"] == query["processed"] + query["skipped"] == 5
        assert query["processed"] > 0


def test_one_broken_feed_leaves_the_others_alone(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    options = RunOptions(offline=True, sources={"yard": str(broken)})
    summary = run_bundle(open_bundle(bundle), options).to_json()
    assert summary["queries"]["c"]["processed"] == 6
    assert summary["queries"]["a"]["processed"] == 0
    assert "feed 'yard'" in summary["queries"]["a"]["last_error"]
    assert "broken.mp4" in summary["feeds"]["yard"]["error"]


def test_no_feed_at_all(bundle: Path, tmp_path: Path) -> None:
    sources = dict.fromkeys(("yard", "gate"), str(tmp_path / "nowhere.mp4"))
    with pytest.raises(FeedError, match=r"feed 'yard': source .*nowhere\.mp4' does not exist"):
        run_bundle(open_bundle(bundle), RunOptions(sources=sources))


def test_unknown_feed(bundle: Path) -> None:
    with pytest.raises(FeedError, match="feed 'yrd' is not in the bundle; its feeds are yard, gate"):
        run_bundle(open_bundle(bundle), RunOptions(sources={"yrd": "x.mp4"}))


def test_stop(bundle: Path) -> None:
    stop = Event()
    stop.set()
    summary = run_bundle(open_bundle(bundle), RunOptions(), stop=stop).to_json()
    assert all(query["processed"] == 0 for query in summary["queries"].values())


@pytest.mark.parametrize(
    ("text", "value"),
    [("64MiB", 64 << 20), ("1.5GB", 1_500_000_000), ("50%", "50%"), ("min", "min"), (7, 7), ("1000000", 10**6)],
)
def test_parse_memory(text: str | int, value: str | int) -> None:
    assert parse_memory(text) == value


@pytest.mark.parametrize("text", ["", "much", "0%", "101%", "-5MB", "5iB", "1.5", "9" * 5000])
def test_memory_that_makes_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="64MiB, a share such as 50%"):
        parse_memory(text)


def test_budget() -> None:
    assert [budget(setting, 100, [30, 40]) for setting in ("all", "min", "50%", 77)] == [100, 40, 50, 77]
    assert [budget(setting, 100, [30, 40], 20) for setting in ("all", "min", "50%", 60)] == [120, 60, 60, 60]
    with pytest.raises(InputError, match="59 is 59 bytes; 60 bytes are needed, of which 20 stay loaded"):
        budget(59, 100, [30, 40], 20)


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((bundle / MANIFEST).read_text())
    change(document)
    (bundle / MANIFEST).write_text(json.dumps(document))


def test_feeds_without_a_query_are_not_opened(bundle: Path) -> None:
    change_manifest(bundle, lambda d: d["feeds"].update(unused={"source": "nowhere.mp4"}))
    summary = run_bundle(open_bundle(bundle), RunOptions(offline=True))
    assert set(summary.run.feeds) == {"yard", "gate"}
    assert summary.failures == {}


def test_a_decoder_that_cannot_be_made_leaves_no_sink_open(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "Inference", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_bundle(open_bundle(bundle), RunOptions(results=tmp_path / "r.jsonl", video=tmp_path / "video"))
    assert not (tmp_path / "r.jsonl").exists()


def test_queries_that_failed(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    # The model can be activated, but its graph refuses the input.
    change_manifest(bundle, lambda d: d["models"]["a"]["input"].update(size=[8, 8], color="gray", mean=[0], std=[1]))
    summary = run_bundle(open_bundle(bundle), RunOptions(offline=True, sources={"yard": str(broken)}, frames=20))
    assert set(summary.failures) == {"a", "b", "c"}
    assert "feed 'yard'" in summary.failures["b"]
    assert "model a, stage main" in summary.failures["c"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of times by fixed times."""
    times = {1: 2.0, 2: 4.0}

    def measure_times(bundle: Bundle, backend: Backend, *_: object) -> Times:
        return Times(load=dict.fromkeys(backend.segments, 0.5), run=dict.fromkeys(bundle.manifest.models, times))

    monkeypatch.setattr(device_profile, "measure_times", measure_times)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("policy", POLICIES)
def test_weights_are_swapped_as_planned_where_memory_is_short(bundle: Path, tmp_path: Path, policy: str) -> None:
    trace = tmp_path / "trace.json"
    options = RunOptions(memory="min", policy=policy, frames=8, threads=1, trace=trace)
    summary = run_bundle(open_bundle(bundle), options).to_json()
    for query in summary["queries"].values():
        assert query["frames"] == query["processed"] + query["skipped"] == 8
        assert query["processed"] > 0 and query["errors"] == 0
    plan = summary["plan"]
    assert plan["policy"] == policy
    # When a feed has ended, a new plan may leave its queries out.
    assert set(plan["order"]) == set(plan["batches"]) <= {"a", "b", "c"}
    assert all(frames in (1, 2) for frames in plan["batches"].values())
    assert 0 < summary["memory"]["peak"] <= summary["memory"]["budget"]
    assert summary["swaps"]["count"] > 0 and summary["swaps"]["bytes"] > 0
    events = json.loads(trace.read_text())["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert set(lanes.values()) == {"run", "load", "decode yard", "decode gate"}
    spans = [(lanes[event["tid"]], event["name"]) for event in events if event["ph"] == "X"]
    runs = Counter(name for lane, name in spans if lane == "run")
    assert runs == {name: query["processed"] for name, query in summary["queries"].items()}
    assert any(lane == "load" for lane, _ in spans)


@pytest.mark.usefixtures("measured")
def test_offline_every_frame_is_seen_where_memory_is_short(bundle: Path) -> None:
    summary = run_bundle(open_bundle(bundle), RunOptions(memory="min", offline=True, threads=1)).to_json()
    assert {name: query["processed"] for name, query in summary["queries"].items()} == {"a": 12, "b": 12, "c": 6}
    assert summary["memory"]["peak"] <= summary["memory"]["budget"]


def test_a_model_that_takes_longer_than_the_sla_is_named_and_served(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def measure_times(bundle: Bundle, backend: Backend, *_: object) -> Times:
        times = {name: {1: 5000.0 if name == "a" else 1.0} for name in bundle.manifest.models}
        return Times(load=dict.fromkeys(backend.segments, 0.5), run=times)

    monkeypatch.setattr(device_profile, "measure_times", measure_times)
    summary = run_bundle(open_bundle(bundle), RunOptions(memory="min", frames=6, threads=1))
    assert "a run takes 5000 ms, longer than the SLA" in caplog.text
    assert all(query.processed > 0 for query in summary.run.queries.values())


@pytest.mark.parametrize("memory", ["min", "all"])
def test_a_device_that_cannot_be_measured_still_runs(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, memory: str
) -> None:
    def fails(*_: object, **__: object) -> Profile:
        raise BackendError("out of luck")

    monkeypatch.setattr(deployment, "profile_of", fails)
    summary = run_bundle(open_bundle(bundle), RunOptions(memory=memory, offline=True, threads=1)).to_json()
    assert {name: query["processed"] for name, query in summary["queries"].items()} == {"a": 12, "b": 12, "c": 6}
    assert summary["memory"]["peak"] <= summary["memory"]["budget"]
    # If all weights fit, nothing is measured.
    assert ("nothing is planned, queries take turns: out of luck" in caplog.text) == (memory == "min")


def test_a_trace_that_cannot_be_written_does_not_lose_the_summary(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = run_bundle(open_bundle(bundle), RunOptions(offline=True, trace=tmp_path))
    assert {name: query.processed for name, query in summary.run.queries.items()} == {"a": 12, "b": 12, "c": 6}
    (warning,) = [each.getMessage() for each in caplog.records if "trace" in each.getMessage()]
    assert warning == f"{tmp_path}: cannot write the trace: Is a directory"


def test_turns_of_several_frames_prepare_each_frame_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_times(bundle: Bundle, backend: Backend, *_: object) -> Times:
        return Times(
            load=dict.fromkeys(backend.segments, 100.0), run={name: {1: 2.0, 4: 8.0} for name in bundle.manifest.models}
        )

    monkeypatch.setattr(device_profile, "measure_times", measure_times)
    # Loads are slow and answers may be late, so that turns of several frames pay.
    change_manifest(bundle, lambda document: document.update(sla_ms=1000))
    prepared = 0

    def counted(image: Image, spec: InputSpec) -> object:
        nonlocal prepared
        prepared += 1
        return preprocess(image, spec)

    monkeypatch.setattr(prepared_frames, "preprocess", counted)
    summary = run_bundle(open_bundle(bundle), RunOptions(memory="min", offline=True, threads=1))
    assert summary.run.plan.batches["a"] == 4
    # a and b want the same input of the 12 frames of yard; c has the 6 frames of gate.
    assert [query.processed for query in summary.run.queries.values()] == [12, 12, 6]
    assert prepared == 12 + 6

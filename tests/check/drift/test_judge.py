"""Verdicts about samples, and samples that are damaged, of others, or of boxes whose clocks differ."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import sleep

import pytest
from drift_samples import NOON, Scripted, picture, put_sample

from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.check.drift.drift_report import drift_lines, drift_table, drift_to_json, write_metrics
from gemel.check.drift.follow import in_order, judge_new, rounds
from gemel.check.drift.judge import DriftJudge, DriftLimits
from gemel.errors import InputError
from gemel.runtime.sinks.sample_files import DamagedSampleError, SampleStore, open_samples

Make = Callable[..., DriftJudge]


@pytest.fixture
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


@pytest.fixture
def make(opened: Bundle) -> Make:
    """Return a function that makes a judge whose merged model ``a`` is wrong in frames darker than 50."""

    def judge(**limits: float) -> DriftJudge:
        merged = Scripted(opened, lambda query, bright: "blue" if query == "a" and bright < 50 else "red")
        return DriftJudge(merged, Scripted(opened, lambda query, bright: "red"), DriftLimits(**limits))  # type: ignore[arg-type]

    return judge


def test_a_drift_of_one_query(make: Make, opened: Bundle, tmp_path: Path) -> None:
    judge = make(window_s=600)
    for number in range(40):
        night = number >= 30
        put_sample(
            tmp_path / "s", number, opened.id, brightness=20 if night else 100, answers={
                "a": [{"label": "blue" if night else "red", "score": 0.9}], "b": [{"label": "red", "score": 0.9}]
            },
        )  # fmt: skip
    judge_new(judge, open_samples(str(tmp_path / "s")))
    drifts = judge.drifts
    assert {query: drift.verdict for query, drift in drifts.items()} == {"a": "revert", "b": "holds", "c": "unknown"}
    # Within a few samples of the drift.
    assert NOON + 30 * 30 < (drifts["a"].reverted_at or 0) < NOON + 36 * 30
    assert drifts["a"].began_at == NOON + 30 * 30
    found = drift_to_json(judge)
    windows = found["queries"]["a"]["windows"]
    assert [each["accuracy"] for each in windows] == [1.0, 0.5]
    assert all(each["low"] <= each["accuracy"] <= each["high"] for each in windows)
    assert (found["queries"]["a"]["samples"], found["queries"]["a"]["judged"]) == (40, 40)
    assert (found["queries"]["c"]["accuracy"], found["left_out"]) == (None, {})
    assert (found["queries"]["a"]["began_at"], found["queries"]["b"]["began_at"]) == (NOON + 30 * 30, None)
    (line,) = drift_lines(judge)
    assert line.startswith("query a: its loss began about 2026-11-27T12:15:00Z; ")
    assert line.endswith("--since 2026-11-27T12:15:00Z") and drift_table(judge).row_count == 3
    pytest.importorskip("prometheus_client", reason="needs prometheus-client (the extra service)")
    write_metrics(tmp_path / "m" / "drift.prom", judge)
    text = (tmp_path / "m" / "drift.prom").read_text()
    assert 'gemel_drift_verdict{query="a",verdict="revert"} 1.0' in text
    assert 'gemel_drift_accuracy_ratio{query="b"} 1.0' in text
    assert 'gemel_drift_evidence_ratio{query="a"} 1.0' in text
    (newest,) = re.findall(r"^gemel_drift_newest_sample_timestamp_seconds (\S+)$", text, re.MULTILINE)
    assert float(newest) == NOON + 39 * 30


def test_a_verdict_of_revert_stays_and_one_of_watch_does_not(make: Make, opened: Bundle, tmp_path: Path) -> None:
    judge = make()
    for number, brightness in enumerate([20] * 3 + [100] * 60):
        label = "blue" if brightness < 50 else "red"
        put_sample(tmp_path, number, opened.id, brightness=brightness, label=label)
    store = open_samples(str(tmp_path))
    verdicts = []
    for sample, at in in_order(store.read(name) for name in store.names()):
        judge.add(judge.ask(sample), at)
        verdicts.append(judge.drifts["a"].verdict)
    assert verdicts[:3] == ["holds", "holds", "watch"] and verdicts[-1] == "holds" and "revert" not in verdicts


def test_a_loss_counts_only_if_the_bundle_itself_shows_it(make: Make, opened: Bundle, tmp_path: Path) -> None:
    judge = make()
    # The box answered otherwise than its bundle does on the stored frames, as after a hook or hard compression.
    for number in range(30):
        put_sample(tmp_path / "hooked", number, opened.id, label="blue")
    judge_new(judge, open_samples(str(tmp_path / "hooked")))
    drift = judge.drifts["a"]
    assert (drift.verdict, drift.accuracy, drift.given) == ("holds", 1.0, 0.0)
    # Nor if the answers given were right.
    judge = make()
    for number in range(30):
        put_sample(tmp_path / "dark", number, opened.id, brightness=20)
    judge_new(judge, open_samples(str(tmp_path / "dark")))
    assert (judge.drifts["a"].verdict, judge.drifts["a"].given) == ("holds", 1.0)


def test_samples_of_others(make: Make, opened: Bundle, tmp_path: Path) -> None:
    judge = make()
    put_sample(tmp_path, 0, "f" * 64)
    put_sample(tmp_path, 1, opened.id, answers={"a": [{"label": "red", "score": 0.9}], "cars": []})
    put_sample(tmp_path, 2, opened.id, answers={"cars": []})
    put_sample(tmp_path, 3, opened.id, answers={"a": "red", "b": [{"label": "red", "score": 0.9}]})
    judge_new(judge, open_samples(str(tmp_path)))
    assert judge.left_out == {"other bundle": 1, "unknown query": 2, "unreadable answer": 1}
    assert (judge.drifts["a"].samples, judge.drifts["b"].samples) == (2, 1)
    assert "left out, other bundle: 1, such as yard-20261127T120000.000Z.json: bundle ffffffffffff" in drift_lines(
        judge
    )
    # An answer that cannot be read counts as wrong, but the bundle's own is right.
    assert judge.drifts["a"].accuracy == 1.0


def test_samples_since(opened: Bundle, tmp_path: Path) -> None:
    """Earlier samples are left out by their own clock, before their pictures are read."""
    red = Scripted(opened, lambda query, bright: "red")
    judge = DriftJudge(red, red, since=NOON + 60)
    for number in range(4):
        put_sample(tmp_path, number, opened.id, data=b"" if number < 2 else None)
    judge_new(judge, open_samples(str(tmp_path)))
    assert judge.left_out == {"before --since": 2} and judge.drifts["a"].judged == 2


def test_damaged_samples(make: Make, opened: Bundle, tmp_path: Path) -> None:
    judge, whole = make(), picture(100)
    put_sample(tmp_path, 0, opened.id, data=whole[: len(whole) // 2])
    put_sample(tmp_path, 1, opened.id, data=b"")
    put_sample(tmp_path, 2, opened.id).with_suffix(".jpg").unlink()
    record = put_sample(tmp_path, 3, opened.id)
    record.write_bytes(record.read_bytes()[:100])
    put_sample(tmp_path, 4, opened.id).write_text("")
    put_sample(tmp_path, 5, opened.id).write_text("[" * 100_000)
    put_sample(tmp_path, 6, opened.id, size=[17, 24])
    put_sample(tmp_path, 7, opened.id, size=[100_000, 100_000])
    put_sample(tmp_path, 8, opened.id, at=float("nan"))
    put_sample(tmp_path, 9, opened.id, schema_version="2.0")
    put_sample(tmp_path, 10, opened.id, image="../yard.jpg")
    put_sample(tmp_path, 11, opened.id, image="yard.png")
    put_sample(tmp_path, 12, opened.id, frame=-1)
    (tmp_path / "notes.json").write_text('{"a": 1}')
    (tmp_path / ".yard-20261127T120013.000Z.json.part").write_text("{")
    put_sample(tmp_path, 14, opened.id)
    judge_new(judge, open_samples(str(tmp_path)))
    assert judge.left_out == {"damaged": 14}
    assert judge.drifts["a"].samples == 1


def test_a_model_that_fails(make: Make, opened: Bundle, tmp_path: Path) -> None:
    judge = DriftJudge(Scripted(opened, lambda query, bright: "red"), Scripted(opened, lambda query, bright: 1 / 0))  # type: ignore[arg-type, return-value]
    put_sample(tmp_path, 0, opened.id)
    judge_new(judge, open_samples(str(tmp_path)))
    assert judge.left_out == {"failed": 1}
    assert judge.reasons["failed"] == ["yard-20261127T120000.000Z.json: ZeroDivisionError: division by zero"]


def test_clocks_that_differ(make: Make, opened: Bundle, tmp_path: Path) -> None:
    # The clock of run r1 is set back by a day after its second frame; r2's clock is years ahead.
    for number, at in enumerate([NOON + 86400, NOON + 86430, NOON + 60, NOON + 90]):
        put_sample(tmp_path, number, opened.id, at=at)
    put_sample(tmp_path, 5, opened.id, run="r2", frame=0, at=NOON + 1e9)
    store = open_samples(str(tmp_path))
    late: list[str] = []
    found = in_order((store.read(name) for name in store.names()), lambda sample: late.append(sample.name))
    assert [(sample.record.run, sample.record.frame, at - NOON) for sample, at in found] == [
        ("r1", 0, 60), ("r1", 1, 60), ("r1", 2, 60), ("r1", 3, 90), ("r2", 0, 1e9),
    ]  # fmt: skip
    assert len(late) == 2
    judge = make()
    judge_new(judge, store)
    assert judge.clocks_back == 2 and judge.drifts["a"].judged == 5
    first, second = drift_lines(judge)
    assert first.startswith("clocks: 2 samples are older than an earlier frame of their run")
    assert second.startswith("clocks: the newest sample is ") and "in the future of this machine's clock" in second


def test_an_original_that_does_not_fit(opened: Bundle, bundle_folder: Path) -> None:
    document = json.loads((bundle_folder / "bundle" / MANIFEST).read_text())
    other = {**document, "queries": {"a": document["queries"]["a"]}}
    lacking = Bundle(bundle_folder, type(opened.manifest).model_validate(other), "")
    merged = Scripted(opened, lambda query, bright: "red")
    with pytest.raises(InputError, match="has no query 'b', which the bundle of the boxes has"):
        DriftJudge(merged, Scripted(lacking, lambda query, bright: "red"))
    other = {**document, "queries": {**document["queries"], "b": {**document["queries"]["b"], "task": "raw"}}}
    task = Bundle(bundle_folder, type(opened.manifest).model_validate(other), "")
    with pytest.raises(InputError, match="query b is of the task raw"):
        DriftJudge(merged, Scripted(task, lambda query, bright: "red"))


class TestSeveralAtOnce:
    """Devices that answer several frames at once, as the workers of a cluster do."""

    @pytest.fixture
    def judge(self, opened: Bundle) -> DriftJudge:
        def slow(query: str, bright: int) -> str:
            # The earlier a frame, the brighter it is here, and the longer its answer takes.
            sleep(bright / 20_000)
            return "blue" if query == "a" and bright < 50 else "red"

        original = Scripted(opened, lambda query, bright: "red", at_once=8)
        return DriftJudge(Scripted(opened, slow, at_once=4), original)

    def test_they_are_judged_in_order(self, judge: DriftJudge, opened: Bundle, tmp_path: Path) -> None:
        for number in range(40):
            put_sample(tmp_path, number, opened.id, brightness=200 - 5 * number, label="blue")
        put_sample(tmp_path, 40, opened.id, data=b"")
        judge_new(judge, open_samples(str(tmp_path)))
        drift = judge.drifts["a"]
        # From the first frame that is darker than 50.
        assert (judge.at_once, drift.judged, drift.began_at) == (4, 40, NOON + 31 * 30)
        assert judge.left_out == {"damaged": 1} and judge.newest == NOON + 39 * 30

    def test_a_stop_leaves_the_rest_unasked(self, judge: DriftJudge, opened: Bundle, tmp_path: Path) -> None:
        for number in range(100):
            put_sample(tmp_path, number, opened.id, brightness=200)
        stop, known = Event(), set[str]()
        judge_new(judge, open_samples(str(tmp_path)), known, stop=stop, told=lambda done, total: stop.set())
        assert len(known) == judge.drifts["a"].samples == 1
        assert judge._merged.count < 50  # type: ignore[attr-defined]


class TestStores:
    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="there is no such folder"):
            open_samples(str(tmp_path / "none")).names()

    def test_a_store_of_fsspec(self, make: Make, opened: Bundle, tmp_path: Path) -> None:
        for number in range(3):
            put_sample(tmp_path, number, opened.id)
        store = open_samples(f"file://{tmp_path}")
        judge, known = make(), set[str]()
        judge_new(judge, store, known)
        assert judge.drifts["a"].samples == 3 and len(known) == 3
        with pytest.raises(DamagedSampleError, match=r"none\.json: cannot be read: FileNotFoundError"):
            store.read("none.json")
        with pytest.raises(InputError, match="there is no such folder"):
            open_samples(f"file://{tmp_path}/none").names()
        with pytest.raises(InputError, match=r"nosuch://.*Protocol not known: nosuch"):
            open_samples("nosuch://key:s3cret@bucket/x")


class TestFollow:
    def test_new_samples_are_judged_once(self, make: Make, opened: Bundle, tmp_path: Path) -> None:
        judge, stop, folder = make(), Event(), tmp_path / "later"
        looks = rounds(judge, SampleStore("s", folder), 0.0, stop)
        first = next(looks)
        assert first.trouble == "s: there is no such folder" and not first.changes
        assert next(looks).trouble is None  # said once
        put_sample(folder, 0, opened.id)
        assert next(looks).changes == {"a": ("unknown", "holds"), "b": ("unknown", "holds")}
        for number in range(1, 10):
            put_sample(folder, number, opened.id, brightness=20, label="blue")
        assert next(looks).changes == {"a": ("holds", "revert")}
        assert not next(looks).changes
        assert judge.drifts["a"].samples == 10
        stop.set()
        assert list(looks) == []

    def test_a_stop_leaves_the_rest_for_later(self, make: Make, opened: Bundle, tmp_path: Path) -> None:
        judge, stop, known = make(), Event(), set[str]()
        for number in range(4):
            put_sample(tmp_path, number, opened.id)
        store = open_samples(str(tmp_path))
        judge_new(judge, store, known, stop=stop, told=lambda done, total: stop.set() if done == 1 else None)
        assert judge.drifts["a"].samples == 2 and len(known) == 2
        stop.clear()
        judge_new(judge, store, known)
        assert len(known) == 4
        assert judge.drifts["a"].samples == 4

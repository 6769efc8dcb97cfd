"""All outputs of a run together: sinks of the caller, variables, and lines that are made once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from threading import Event as Flag
from threading import current_thread, main_thread

import pytest
from sink_events import INFO, PEOPLE, QUERIES, frame

from gemel.bundles.output_specs import JsonlSpec, MqttSpec, OutputSpec, SnapshotsSpec, VideoSpec, WebhookSpec
from gemel.errors import InputError
from gemel.frames.frame import Frame
from gemel.runtime.decode.results import Result
from gemel.runtime.sinks import OutputSink, Sink, events, open_outputs, queued
from gemel.runtime.sinks.run_outputs import outputs_of_run


class Notes(Sink):
    """Sink that notes what it is told, and raises what it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.told: list[tuple[object, ...]] = []
        self.threads: set[bool] = set()
        self._error = error

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        self._note("result", query, frame.index, frame.image.size > 0, result, latency_ms)

    def on_error(self, query: str, frame: Frame, message: str) -> None:
        self._note("error", query, frame.index, message)

    def on_frame(self, frame: Frame, results: Mapping[str, Result]) -> None:
        self._note("frame", frame.index, dict(results))

    def close(self) -> None:
        self._note("close")

    def _note(self, *what: object) -> None:
        self.told.append(what)
        self.threads.add(current_thread() is main_thread())
        if self._error is not None:
            raise self._error


class Blind(Notes):
    pixels = False


class Direct(Notes):
    queued = False


class OnlyFrames(Sink):
    def on_frame(self, frame: Frame, results: Mapping[str, Result]) -> None:
        pass


def tell(outputs: OutputSink) -> None:
    """Tell outputs one event of each kind, and end them."""
    outputs.on_result("people", frame(0), PEOPLE, 2.0)
    outputs.on_error("scene", frame(0), "no luck")
    outputs.on_frame(frame(0), {"people": PEOPLE})
    outputs.close()


def test_a_sink_is_told_everything_on_a_thread_of_its_own() -> None:
    sink, blind, direct = Notes(), Blind(), Direct()
    outputs = OutputSink(INFO, {}, [sink, blind, direct, OnlyFrames()])
    tell(outputs)
    expected = [
        ("result", "people", 0, True, PEOPLE, 2.0),
        ("error", "scene", 0, "no luck"),
        ("frame", 0, {"people": PEOPLE}),
        ("close",),
    ]
    assert sink.told == direct.told == expected
    assert blind.told[0] == ("result", "people", 0, False, PEOPLE, 2.0)
    assert (sink.threads, blind.threads, direct.threads) == ({False}, {False}, {True})
    assert {name: found.offered for name, found in outputs.counts().items()} == {
        "Notes": 3,
        "Blind": 3,
        "OnlyFrames": 1,
    }


@pytest.mark.parametrize("error", [ValueError("odd"), OSError(28, "No space left on device")])
def test_a_sink_that_raises_loses_events_and_nothing_else(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    sinks = [Notes(error), Direct(error), Notes()]
    outputs = OutputSink(INFO, {}, sinks)
    tell(outputs)
    assert [len(sink.told) for sink in sinks] == [4, 1, 4]
    counts = outputs.counts()
    assert (counts["Notes"].failed, counts["Notes"].written, counts["Notes"].state) == (3, 0, "failing")
    assert (counts["Notes-2"].failed, counts["Notes-2"].written) == (0, 3)
    lines = [each.getMessage() for each in caplog.records]
    assert sum("left out from now on" in line for line in lines) == 1
    assert sum(line.startswith("output Notes: ") for line in lines) == 1


def test_a_sink_that_never_returns_does_not_hold_up_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(Sink):
        def on_result(self, *_: object) -> None:
            release.wait(20)

    release = Flag()
    monkeypatch.setattr(queued, "_GRACE_S", 0.2)
    outputs = OutputSink(INFO, {}, [Stuck()])
    for index in range(3000):
        outputs.on_result("people", frame(index), PEOPLE, 2.0)
    outputs.close()
    counts = outputs.counts()["Stuck"]
    assert (counts.offered, counts.written, counts.waiting) == (3000, 0, 0)
    release.set()


def test_the_line_of_a_result_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    to_line = events.json_line

    def counted(row: dict[str, object]) -> bytes:
        nonlocal made
        made += 1
        return to_line(row)

    monkeypatch.setattr(events, "json_line", counted)
    specs = [OutputSpec(jsonl=JsonlSpec(path=str(tmp_path / f"{name}.jsonl"))) for name in "abc"]
    outputs = open_outputs(specs, QUERIES, INFO)
    assert list(outputs.counts()) == ["jsonl", "jsonl-2", "jsonl-3"]
    for index in range(50):
        outputs.on_result("people", frame(index), PEOPLE, 2.0)
    outputs.close()
    # Two threads that begin a line at once may both make it.
    assert 50 <= made <= 100
    texts = {(tmp_path / f"{name}.jsonl").read_text() for name in "abc"}
    assert len(texts) == 1 and len(texts.pop().splitlines()) == 50


def test_outputs_that_were_opened_are_closed_if_another_is_refused(tmp_path: Path) -> None:
    first = OutputSpec(jsonl=JsonlSpec(path=str(tmp_path / "a.jsonl")))
    second = OutputSpec(webhook=WebhookSpec(url="https://127.0.0.1:1/", ca=str(tmp_path / "none.pem")))
    with pytest.raises(InputError, match=r"output webhook \(https://127\.0\.0\.1:1\): .*No such file"):
        open_outputs([first, second], QUERIES, INFO)
    open_outputs([first], QUERIES, INFO).close()


def test_a_kind_of_a_newer_gemel_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    outputs = open_outputs([OutputSpec.model_validate({"carrier-pigeon": {"to": "home"}})], QUERIES, INFO)
    outputs.close()
    assert outputs.counts() == {}
    assert "a kind that this gemel does not know" in caplog.text


class TestVariables:
    def test_those_of_a_bundle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GEMEL_PASSWORD", "s3cret")
        monkeypatch.setenv("SITE", "yard")
        monkeypatch.setenv("AWS_SECRET", "no")
        mine = OutputSpec(mqtt=MqttSpec(url="mqtt://broker", topic="${SITE}/{query}", password="${GEMEL_PASSWORD}"))
        (found,) = outputs_of_run([mine], None, allowed=["SITE"])
        assert found.mqtt is not None
        assert (found.mqtt.topic, found.mqtt.password) == ("yard/{query}", "s3cret")
        assert "s3cret" not in repr(found)
        theirs = OutputSpec(webhook=WebhookSpec(url="https://evil/${AWS_SECRET}"))
        with pytest.raises(InputError, match=r"outputs\[1\]\.webhook: environment variable AWS_SECRET is not allowed"):
            outputs_of_run([mine, theirs], None, allowed=["SITE"])
        # Outputs that the user gives may name any variable.
        (found,) = outputs_of_run([theirs], [theirs])
        assert found.webhook is not None and found.webhook.url == "https://evil/no"

    def test_one_that_is_not_set(self) -> None:
        spec = OutputSpec(webhook=WebhookSpec(url="https://h/", headers={"X": "${GEMEL_NONE}"}))
        with pytest.raises(InputError, match=r"^outputs\[0\]\.webhook: environment variable GEMEL_NONE is not set$"):
            outputs_of_run([spec], None)

    @pytest.mark.parametrize(
        ("spec", "value"),
        [
            (OutputSpec(jsonl=JsonlSpec(path="${GEMEL_X}")), "/home/me/.bashrc"),
            (OutputSpec(webhook=WebhookSpec(url="${GEMEL_X}")), "file:///etc/passwd"),
            (OutputSpec(webhook=WebhookSpec(url="http://h/", headers={"X": "${GEMEL_X}"})), "a\r\nB: c"),
            (OutputSpec(mqtt=MqttSpec(url="mqtt://h", topic="${GEMEL_X}")), "a/#"),
            (OutputSpec(video=VideoSpec(folder="${GEMEL_X}")), ""),
            (OutputSpec(snapshots=SnapshotsSpec(folder="x${GEMEL_X}")), "\0"[:0]),
        ],
    )
    def test_values_are_checked_too(self, spec: OutputSpec, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GEMEL_X", value)
        if spec.snapshots is not None:
            assert outputs_of_run([spec], None)[0].snapshots == SnapshotsSpec(folder="x")
            return
        with pytest.raises(InputError, match=r"^outputs\[0\]\.\w+: "):
            outputs_of_run([spec], None)


def test_flags_add_to_the_outputs(tmp_path: Path) -> None:
    bundle = [OutputSpec(jsonl=JsonlSpec(path="a.jsonl"))]
    results = tmp_path / "any name"
    found = outputs_of_run(bundle, None, results=results, video=tmp_path / "v")
    assert [each.target for each in found] == ["a.jsonl", str(results), str(tmp_path / "v")]
    assert outputs_of_run(bundle, (), results=None) == []
    (found_results,) = outputs_of_run((), None, results=results)
    assert found_results.jsonl is not None and found_results.jsonl.rotate.size is None
    outputs = open_outputs([found_results], QUERIES, INFO)
    outputs.on_result("people", frame(0), PEOPLE, 2.0)
    outputs.close()
    assert json.loads(results.read_text())["query"] == "people"

"""Runs of queries on feeds: every frame is processed or skipped, and trouble stays where it is."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from scripted import Recorder, answer, check, feed, one_by_one

from gemel.errors import FeedError, InputError
from gemel.frames.frame import Frame
from gemel.frames.source import resolve
from gemel.runtime.decode.results import Result
from gemel.runtime.feeds import Feed
from gemel.runtime.loop import channel as loop_channel
from gemel.runtime.loop.pipeline import run_pipeline
from gemel.runtime.loop.runner import Runner
from gemel.runtime.loop.summary import RunStats


class TestOffline:
    def test_every_query_processes_every_frame(self) -> None:
        feeds = {"yard": feed("yard", 20), "gate": feed("gate", 7)}
        recorder = Recorder()
        stats = run_pipeline({"a": "yard", "b": "yard", "c": "gate"}, feeds, one_by_one(), [recorder], live=False)
        check(stats, feeds, recorder)
        assert recorder.indices("a") == recorder.indices("b") == list(range(20))
        assert recorder.indices("c") == list(range(7))
        assert stats.feeds["yard"].delivered == 20
        assert [set(results) for frame, results in recorder.frames if frame.feed == "yard"] == [{"a", "b"}] * 20
        for frame, results in recorder.frames:
            for query, result in results.items():
                assert result == answer(query, frame)

    def test_limit_of_frames_in_a_loop(self) -> None:
        feeds = {"yard": feed("yard", 3, loop=True)}
        recorder = Recorder()
        stats = run_pipeline({"a": "yard"}, feeds, one_by_one(), [recorder], live=False, frames=10)
        check(stats, feeds, recorder)
        assert recorder.indices("a") == list(range(10))

    def test_real_video(self, tmp_path: Path) -> None:
        from gemel.runtime.sinks.encoder import Encoder

        image = np.full((32, 48, 3), 90, np.uint8)
        encoder = Encoder(tmp_path / "a.mp4", image)
        for i in range(12):
            encoder.write(image, i / 25)
        encoder.close()
        feeds = {"yard": Feed("yard", resolve("yard", str(tmp_path / "a.mp4")))}
        recorder = Recorder()
        stats = run_pipeline({"a": "yard"}, feeds, one_by_one(), [recorder], live=False)
        check(stats, feeds, recorder)
        assert stats.queries["a"].processed == 12

    def test_a_feed_without_queries_is_left_alone(self) -> None:
        feeds = {"yard": feed("yard", 3), "spare": feed("spare", 3)}
        stats = run_pipeline({"a": "yard"}, feeds, one_by_one(), live=False)
        assert set(stats.feeds) == {"yard"}
        assert feeds["spare"].delivered == 0


class TestLive:
    def test_newest_frame_wins(self) -> None:
        feeds = {"yard": feed("yard", 200, live=True)}
        gate = feeds["yard"]
        recorder = Recorder()

        def slow(query: str, frame: Frame) -> Result:
            while gate.delivered < min(200, frame.index + 60):
                time.sleep(0.0005)
            return answer(query, frame)

        stats = run_pipeline({"a": "yard"}, feeds, one_by_one(slow), [recorder], frames=200)
        check(stats, feeds, recorder)
        assert stats.queries["a"].skipped > 100
        assert recorder.indices("a")[-1] == 199

    def test_frames_are_delivered_and_handled(self) -> None:
        feeds = {"yard": feed("yard", 5, live=True), "gate": feed("gate", 50, pause=0.001)}
        recorder = Recorder()
        stats = run_pipeline({"a": "yard", "b": "yard", "c": "gate"}, feeds, one_by_one(), [recorder], frames=23)
        check(stats, feeds, recorder)
        assert all(query.frames == 23 for query in stats.queries.values())
        assert all(recorder.indices(query)[-1] == 22 for query in "abc")

    def test_duration(self) -> None:
        feeds = {"yard": feed("yard", 10, live=True, pause=0.001)}
        recorder = Recorder()
        stats = run_pipeline({"a": "yard"}, feeds, one_by_one(), [recorder], duration=0.1)
        check(stats, feeds, recorder)
        assert stats.seconds >= 0.1
        assert stats.feeds["yard"].restarts > 0

    def test_duration_without_any_frame(self) -> None:
        feeds = {"yard": feed("yard", 0, live=True, failure=OSError("no route to host"))}
        stats = run_pipeline({"a": "yard"}, feeds, one_by_one(), duration=0.05)
        assert stats.queries["a"].frames == 0
        assert stats.feeds["yard"].error == "no route to host"

    def test_stopped_before_it_starts(self) -> None:
        stop = Event()
        stop.set()
        feeds = {"yard": feed("yard", 10, live=True)}
        recorder = Recorder()
        check(run_pipeline({"a": "yard"}, feeds, one_by_one(), [recorder], stop=stop), feeds, recorder)
        assert not recorder.results

    def test_the_latest_result_of_every_query_is_shown(self) -> None:
        feeds = {"yard": feed("yard", 60, live=True, pause=0.002)}
        recorder = Recorder()
        stats = run_pipeline({"a": "yard", "b": "yard"}, feeds, one_by_one(), [recorder], frames=60)
        check(stats, feeds, recorder)
        for frame, results in recorder.frames:
            for query in "ab":
                seen = [result for name, index, result in recorder.results if name == query and index <= frame.index]
                assert results.get(query) == (seen[-1] if seen else None)


@pytest.mark.parametrize("seed", range(25))
def test_frames_are_processed_or_skipped(seed: int) -> None:
    """Counts add up for random feeds, speeds, failures and ends."""
    generator = random.Random(seed)
    live = generator.random() < 0.7
    feeds = {}
    for i in range(generator.randint(1, 3)):
        camera = live and generator.random() < 0.5
        feeds[f"f{i}"] = feed(
            f"f{i}",
            generator.randint(0, 40),
            live=camera,
            loop=not camera and generator.random() < 0.3,
            pause=generator.choice((0.0, 0.001, 0.003)),
            failure=OSError("gone") if generator.random() < 0.3 else None,
            seed=seed,
        )
    queries = {f"q{i}": generator.choice(list(feeds)) for i in range(generator.randint(1, 5))}
    speed = {query: generator.choice((0.0, 0.001, 0.004)) for query in queries}
    failing = {query: generator.choice((0.0, 0.0, 0.2, 1.0)) for query in queries}
    stop, calls = Event(), 0
    stop_after = generator.choice((None, generator.randint(1, 60)))
    endings: Sequence[dict[str, float]] = ({"frames": generator.randint(1, 50), "duration": 1.0}, {"duration": 0.2})

    def infer(query: str, frame: Frame) -> Result:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            stop.set()
        time.sleep(speed[query])
        if generator.random() < failing[query]:
            raise RuntimeError("no luck")
        return answer(query, frame)

    recorder = Recorder()
    ending: Any = generator.choice(endings)
    stats = run_pipeline(queries, feeds, one_by_one(infer), [recorder], live=live, stop=stop, **ending)
    used = {name: feeds[name] for name in set(queries.values())}
    check(stats, used, recorder)


class TestTrouble:
    def test_a_query_that_fails_is_given_up_and_others_go_on(self, caplog: pytest.LogCaptureFixture) -> None:
        def infer(query: str, frame: Frame) -> Result:
            if query == "bad":
                raise ValueError("shape mismatch")
            return answer(query, frame)

        feeds = {"yard": feed("yard", 30)}
        recorder = Recorder()
        stats = run_pipeline({"bad": "yard", "good": "yard"}, feeds, one_by_one(infer), [recorder], live=False)
        check(stats, feeds, recorder)
        bad, good = stats.queries["bad"], stats.queries["good"]
        assert (bad.processed, bad.skipped, bad.errors, bad.gave_up) == (0, 30, 10, True)
        assert bad.last_error == "ValueError: shape mismatch"
        assert bad.latency.p50 is None
        assert (good.processed, good.errors, good.gave_up) == (30, 0, False)
        assert all(set(results) == {"good"} for _, results in recorder.frames)
        assert "query bad: given up after 10 failures in a row: ValueError: shape mismatch" in caplog.text

    def test_single_failures_are_survived(self) -> None:
        def infer(query: str, frame: Frame) -> Result:
            if frame.index % 2:
                raise ValueError("odd")
            return answer(query, frame)

        feeds = {"yard": feed("yard", 60)}
        recorder = Recorder()
        stats = run_pipeline({"a": "yard"}, feeds, one_by_one(infer), [recorder], live=False, max_failures=2)
        check(stats, feeds, recorder)
        assert (stats.queries["a"].processed, stats.queries["a"].errors, stats.queries["a"].gave_up) == (30, 30, False)

    def test_an_offline_run_ends_when_all_queries_are_given_up(self) -> None:
        def infer(query: str, frame: Frame) -> Result:
            raise ValueError("no")

        feeds = {"yard": feed("yard", 10, loop=True)}
        recorder = Recorder()
        stats = run_pipeline({"a": "yard", "b": "yard"}, feeds, one_by_one(infer), [recorder], live=False)
        check(stats, feeds, recorder)
        assert all(query.gave_up for query in stats.queries.values())

    def test_a_live_run_tries_a_query_again(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(loop_channel, "_FIRST_PAUSE_S", 0.02)
        recorder, failures, stop = Recorder(), count(1), Event()

        def infer(query: str, frame: Frame) -> Result:
            if next(failures) <= 12:
                raise ValueError("no")
            stop.set()
            return answer(query, frame)

        feeds = {"yard": feed("yard", 10, live=True, pause=0.002, until=stop)}
        stats = run_pipeline({"a": "yard"}, feeds, one_by_one(infer), [recorder], stop=stop)
        check(stats, feeds, recorder)
        found = stats.queries["a"]
        assert (found.errors, found.given_up, found.gave_up, found.processed) == (12, 3, False, 1)
        assert "query a: given up after 12 failures in a row: ValueError: no; tried again in 0 s" in caplog.messages
        assert "query a: answers again" in caplog.messages

    def test_statistics_can_be_had_while_it_runs(self) -> None:
        told: list[RunStats] = []
        begun = Event()
        asked: list[Runner] = []

        def watch() -> None:
            begun.wait(10)
            while not told or told[-1].queries["a"].processed < 40:
                told.append(asked[0].stats())

        def begin(runner: Runner) -> None:
            asked.append(runner)
            begun.set()

        watcher = Thread(target=watch)
        watcher.start()
        recorder, feeds = Recorder(), {"yard": feed("yard", 40, pause=0.002)}
        stats = run_pipeline({"a": "yard"}, feeds, one_by_one(), [recorder], live=False, started=begin)
        watcher.join(10)
        assert not watcher.is_alive()
        assert stats.queries["a"].processed == 40
        for each in told:
            assert 0 <= each.queries["a"].skipped <= each.queries["a"].frames <= 40
            assert each.seconds > 0

    def test_a_feed_that_dies_is_not_noticed_by_others(self) -> None:
        feeds = {"dead": feed("dead", 3, failure=OSError("read error")), "well": feed("well", 40)}
        recorder = Recorder()
        stats = run_pipeline({"a": "dead", "b": "well"}, feeds, one_by_one(), [recorder], live=False)
        check(stats, feeds, recorder)
        assert (stats.queries["a"].processed, stats.queries["b"].processed) == (3, 40)
        assert stats.feeds["dead"].error == "read error"
        assert stats.feeds["well"].error is None

    def test_a_camera_that_stops_is_restarted(self) -> None:
        feeds = {"gate": feed("gate", 5, live=True, failure=OSError("connection reset"))}
        recorder = Recorder()
        stats = run_pipeline({"a": "gate"}, feeds, one_by_one(), [recorder], frames=18)
        check(stats, feeds, recorder)
        assert (stats.feeds["gate"].delivered, stats.feeds["gate"].restarts) == (18, 3)
        assert stats.feeds["gate"].error == "connection reset"

    def test_sinks_are_closed_and_feeds_stopped_when_one_fails(self) -> None:
        class Full(Recorder):
            def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
                raise InputError("results.jsonl: no space left")

        feeds = {"yard": feed("yard", 10, loop=True)}
        sinks = [Recorder(), Full(), Recorder()]
        with pytest.raises(InputError, match="no space left"):
            run_pipeline({"a": "yard"}, feeds, one_by_one(), sinks, live=False)
        assert [sink.closed for sink in sinks] == [1, 1, 1]
        count = feeds["yard"].delivered
        feeds["yard"].join(10)
        assert feeds["yard"].delivered == count

    def test_an_interrupt_is_passed_on(self) -> None:
        def infer(query: str, frame: Frame) -> Result:
            raise KeyboardInterrupt

        recorder = Recorder()
        with pytest.raises(KeyboardInterrupt):
            run_pipeline({"a": "yard"}, {"yard": feed("yard", 10)}, one_by_one(infer), [recorder], live=False)
        assert recorder.closed == 1

    def test_bad_input(self) -> None:
        feeds = {"yard": feed("yard", 1)}
        with pytest.raises(FeedError, match="query 'a': feed 'gate' does not exist; feeds are yard"):
            run_pipeline({"a": "gate"}, feeds, one_by_one())
        with pytest.raises(InputError, match="no queries"):
            run_pipeline({}, feeds, one_by_one())
        with pytest.raises(InputError, match="frames must be at least 1, got 0"):
            run_pipeline({"a": "yard"}, feeds, one_by_one(), frames=0)
        with pytest.raises(InputError, match="duration must be more than 0 seconds, got -1"):
            run_pipeline({"a": "yard"}, feeds, one_by_one(), duration=-1)
        recorder = Recorder()
        with pytest.raises(InputError):
            run_pipeline({}, feeds, one_by_one(), [recorder])
        assert recorder.closed == 1

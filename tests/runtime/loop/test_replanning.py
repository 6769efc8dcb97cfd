"""New plans are made during a run: queries are given up, feeds end or are silent, times differ, memory fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import Event

import pytest
from scripted import answer, feed
from swaps import SPEEDS, Runs, known, planned_for, unanswered

from gemel.frames.frame import Frame
from gemel.runtime.decode.results import Result
from gemel.runtime.planning import review
from gemel.runtime.planning.profile import Profile


@pytest.mark.usefixtures("soon")
class TestPlansAnew:
    @pytest.mark.parametrize("live", [True, False])
    def test_without_a_query_that_was_given_up(self, runs: Runs, live: bool) -> None:
        def infer(query: str, frame: Frame) -> Result:
            time.sleep(0.001)
            if query == "b":
                raise ValueError("shape mismatch")
            return answer(query, frame)

        with planned_for("a, c") as told:
            feeds = {name: feed(name, 20, until=told, pause=0.002) for name in ("yard", "gate")}
            stats = runs(feeds, infer, live=live)
        assert stats.plan.replans > 0
        assert "b" not in stats.plan.order and "B" not in runs.memory.inside
        assert (stats.queries["b"].processed, stats.queries["b"].gave_up) == (0, True)
        assert told.is_set() and unanswered(feeds, runs.recorder, "ac") == []

    @pytest.mark.parametrize("live", [True, False])
    def test_without_a_feed_that_has_ended(self, runs: Runs, live: bool) -> None:
        with planned_for("a, b") as told:
            feeds = {"yard": feed("yard", 20, until=told, pause=0.002), "gate": feed("gate", 3)}
            stats = runs(feeds, live=live)
        assert set(stats.plan.order) <= {"a", "b"}
        assert told.is_set() and unanswered(feeds, runs.recorder) == []

    def test_without_a_feed_that_is_silent_until_it_comes_back(self, runs: Runs) -> None:
        back = Event()

        def infer(query: str, frame: Frame) -> Result:
            if query == "c" and frame.index >= 5:
                back.set()
            return answer(query, frame)

        with planned_for("a, b") as out:
            yard = feed("yard", 20, until=back, pause=0.002)
            feeds = {"yard": yard, "gate": feed("gate", 12, held={5: out}, pause=0.004)}
            stats = runs(feeds, infer)
        assert back.is_set() and unanswered(feeds, runs.recorder) == []
        assert stats.plan.replans >= 2

    def test_as_soon_as_a_query_that_was_left_out_has_a_frame(
        self, runs: Runs, waits: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        last = Event()
        before = 0

        def infer(query: str, frame: Frame) -> Result:
            nonlocal before
            if out.is_set() and frame.feed == "yard" and not last.is_set():
                # No more reviews at intervals from now on; soon all other feeds have ended.
                monkeypatch.setattr(review, "_EVERY_MS", math.inf)
                before = len(waits)
                last.set()
            return answer(query, frame)

        with planned_for("a, b") as out:
            feeds = {
                "yard": feed("yard", 20, until=last, pause=0.002),
                "gate": feed("gate", 2, held={1: last}),
            }
            runs(feeds, infer, duration=5)
        assert last.is_set() and unanswered(feeds, runs.recorder) == []
        # How long the plan without the query takes to come is the machine's affair.
        assert before > 0 and len(waits) - before < 100

    def test_by_measured_times_where_runs_are_far_slower(self, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        measured, follow = Event(), review.Review.follow

        def noted(self: review.Review, profile: Profile) -> None:
            follow(self, profile)
            if all(model.run_ms[1] > 4 for model in profile.models.values()):
                measured.set()

        monkeypatch.setattr(review.Review, "follow", noted)

        def slow(query: str, frame: Frame) -> Result:
            time.sleep(0.005)
            return answer(query, frame)

        batches = {1: 0.1, 2: 0.2, 4: 0.4, 8: 0.8}
        spec = known(dict.fromkeys("abc", batches), sla_ms=8)
        feeds = {name: feed(name, 20, until=measured, pause=0.01) for name in ("yard", "gate")}
        stats = runs(feeds, slow, spec=spec)
        assert stats.plan.replans > 0
        # By measured times, a turn of two frames already takes longer than the SLA.
        assert set(stats.plan.batches.values()) == {1}

    def test_failures_are_not_measured(self, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        measured = []
        monkeypatch.setattr(
            review.Review, "ran", lambda self, queries, expected_ms, milliseconds: measured.extend(queries)
        )

        def infer(query: str, frame: Frame) -> Result:
            if query == "b":
                raise ValueError("no")
            return answer(query, frame)

        stats = runs({"yard": feed("yard", 20), "gate": feed("gate", 20)}, infer, live=False, max_failures=100)
        assert stats.queries["b"].errors == 20
        assert set(measured) == {"a", "c"}


@pytest.mark.usefixtures("soon")
class TestMemoryThatFails:
    @pytest.mark.parametrize("load", SPEEDS, ids=["at once", "later"])
    @pytest.mark.parametrize("first", range(5))
    def test_once_all_weights_are_loaded_again_and_the_run_goes_on(
        self, runs: Runs, caplog: pytest.LogCaptureFixture, load: Callable[[], object] | None, first: int
    ) -> None:
        with planned_for("a, b, c") as told:
            feeds = {name: feed(name, 20, until=told, pause=0.002) for name in ("yard", "gate")}
            stats = runs(feeds, load=load, live=False, fails=lambda count: count == first)
        assert caplog.text.count("no luck; all weights are loaded again") == 1
        assert stats.plan.replans > 0
        assert all(query.processed == query.frames for query in stats.queries.values())

    @pytest.mark.parametrize("live", [True, False])
    def test_always_queries_still_take_turns(self, runs: Runs, live: bool) -> None:
        feeds = {"yard": feed("yard", 60, pause=0.002), "gate": feed("gate", 60, pause=0.002)}
        stats = runs(feeds, live=live, fails=lambda count: True)
        assert unanswered(feeds, runs.recorder) == []
        assert all(query.processed > 5 for query in stats.queries.values())

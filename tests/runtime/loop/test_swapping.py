"""Runs of workloads whose weights are not all in memory."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby, pairwise
from threading import Event, Timer
from typing import Any

import pytest
from profiles import profile
from scripted import answer, feed, one_by_one
from swaps import MODELS, ON, SIZES, SPEEDS, Runs, known, unanswered

from gemel.frames.frame import Frame
from gemel.runtime.decode.results import Result
from gemel.runtime.loop import pipeline
from gemel.runtime.loop.summary import RunStats
from gemel.runtime.planning.planner import POLICIES
from gemel.runtime.planning.profile import StemProfile


@pytest.mark.parametrize("load", SPEEDS, ids=["at once", "later"])
@pytest.mark.parametrize("policy", POLICIES)
class TestPolicies:
    def test_offline_every_query_processes_every_frame(
        self, runs: Runs, policy: str, load: Callable[[], object] | None
    ) -> None:
        stats = runs({"yard": feed("yard", 20), "gate": feed("gate", 9)}, policy=policy, load=load, live=False)
        assert [stats.queries[name].processed for name in "abc"] == [20, 20, 9]
        assert runs.memory.loads > len(SIZES)

    def test_live_the_last_frame_of_every_feed_is_answered(
        self, runs: Runs, policy: str, load: Callable[[], object] | None
    ) -> None:
        feeds = {"yard": feed("yard", 40, pause=0.004), "gate": feed("gate", 30, pause=0.004)}
        stats = runs(feeds, policy=policy, load=load)
        assert unanswered(feeds, runs.recorder) == []
        assert runs.memory.loads > len(SIZES)
        assert set(stats.plan.order) <= set("abc")


def test_live_a_query_takes_the_newest_frames_that_its_batch_holds(runs: Runs) -> None:
    run = {name: {1: 1.0, 4: 4.0} for name in "abc"}
    spec = known(run)
    yard = feed("yard", 200, live=True)

    def slow(query: str, frame: Frame) -> Result:
        while yard.delivered < min(200, frame.index + 30):
            time.sleep(0.0005)
        return answer(query, frame)

    stats = runs({"yard": yard}, slow, spec=spec, queries={"a": "yard", "b": "yard"}, frames=200)
    assert stats.plan.batches == {"a": 4, "b": 4}
    turns = [[index for _, index, _ in turn] for _, turn in groupby(runs.recorder.results, lambda each: each[0])]
    assert max(map(len, turns)) >= 4
    # Each full turn takes the newest frames, and none that were passed over.
    assert all(new == old + 1 for turn in turns if len(turn) == 4 for old, new in pairwise(turn))
    assert stats.queries["a"].skipped > 100


def test_offline_the_batch_of_one_query_does_not_hold_up_the_others(runs: Runs) -> None:
    run = {"a": {1: 1.0, 4: 1.5}, "b": {1: 1.0}, "c": {1: 1.0}}

    def slow(query: str, frame: Frame) -> Result:
        time.sleep(0.002)
        return answer(query, frame)

    spec = known(run, sla_ms=50)
    queries = {"a": "yard", "b": "yard"}
    stats = runs({"yard": feed("yard", 40)}, slow, spec=spec, queries=queries, live=False)
    assert stats.plan.batches == {"a": 4, "b": 1}
    turns = [len(list(turn)) for query, turn in groupby(name for name, *_ in runs.recorder.results) if query == "a"]
    assert max(turns) > 1


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("load", SPEEDS, ids=["at once", "later"])
def test_queries_in_a_joint_turn_answer_the_same_frames_together(
    runs: Runs, live: bool, load: Callable[[], object] | None
) -> None:
    spec = known(10.0, sla_ms=1000)
    stem = StemProfile(id="first layers", run_ms=9.0)
    models = {name: model.model_copy(update={"stem": stem}) for name, model in spec.models.items()}
    queries = {name: query.model_copy(update={"feed": ON[name]}) for name, query in spec.queries.items()}
    spec = spec.model_copy(update={"models": models, "queries": queries})
    feeds = {name: feed(name, 30, pause=0.004 if live else 0.0) for name in ("yard", "gate")}
    stats = runs(feeds, spec=spec, size=9, load=load, live=live)
    assert set(stats.plan.order) == set(stats.plan.batches) == {"a+b", "c"}
    assert stats.plan.promised.keys() == ({"a", "b", "c"} if live else set())
    both = [(query, index) for query, index, _ in runs.recorder.results if query != "c"]
    assert [query for query, _ in both] == ["a", "b"] * (len(both) // 2)
    assert all(first == second for (_, first), (_, second) in zip(both[::2], both[1::2], strict=True))
    assert unanswered(feeds, runs.recorder) == []


class TestWeightsThatNeverCome:
    def never(self, runs: Runs, **options: Any) -> RunStats:
        until = Event()
        feeds = {name: feed(name, 10, live=True, pause=0.002) for name in ("yard", "gate")}
        try:
            return runs(feeds, load=until.wait, **options)
        finally:
            until.set()

    def test_a_duration_ends_the_run(self, runs: Runs) -> None:
        stats = self.never(runs, duration=0.1)
        assert 0.1 <= stats.seconds < 5
        assert stats.blocked_ms > 50
        assert not runs.recorder.results

    def test_it_can_be_stopped(self, runs: Runs) -> None:
        stop = Event()
        Timer(0.1, stop.set).start()
        stats = self.never(runs, stop=stop)
        assert stats.seconds < 5
        assert not runs.recorder.results


class TestTurnsTakeNoTimeForNothing:
    def test_weights_are_neither_looked_for_nor_swapped_while_nobody_has_frames(
        self, runs: Runs, waits: list[float]
    ) -> None:
        on = Event()
        feeds = {"yard": feed("yard", 2, held={1: on}), "gate": feed("gate", 2, held={1: on})}

        def infer(query: str, frame: Frame) -> Result:
            if frame.index == 0 and query == "a":
                Timer(0.3, on.set).start()
            return answer(query, frame)

        # Every turn loads one model while another runs.
        spec = profile({name: [name.upper()] for name in "abc"})
        stats = runs(feeds, infer, spec=spec, size=2, load=partial(time.sleep, 0.001))
        assert stats.seconds > 0.25
        assert unanswered(feeds, runs.recorder) == []
        assert len(waits) < 100
        assert runs.memory.calls < 30

    def test_nor_while_weights_are_awaited_when_all_feeds_have_ended(self, runs: Runs, waits: list[float]) -> None:
        spec = known(link={"bandwidth": 10.0})
        stats = runs({"yard": feed("yard", 1)}, spec=spec, queries={"a": "yard"}, load=partial(time.sleep, 0.15))
        assert stats.queries["a"].processed == 1
        assert stats.blocked_ms > 250
        assert len(waits) < 20


def test_a_run_whose_weights_are_all_in_memory_is_not_planned_anew(soon: None) -> None:
    feeds = {"yard": feed("yard", 30, pause=0.004), "gate": feed("gate", 1)}
    stats = pipeline.run_pipeline(ON, feeds, one_by_one())
    assert (stats.plan.replans, set(stats.plan.order)) == (0, set("abc"))


@pytest.mark.parametrize("seed", range(20))
def test_frames_are_processed_or_skipped(seed: int, runs: Runs, soon: None) -> None:
    """Counts add up, and memory is asked for possible transfers only, for random feeds, speeds, failures and ends."""
    generator = random.Random(seed)
    live = generator.random() < 0.7
    feeds = {
        name: feed(
            name,
            generator.randint(0, 40),
            live=live and generator.random() < 0.3,
            pause=generator.choice((0.0, 0.002, 0.02)),
            failure=OSError("gone") if generator.random() < 0.3 else None,
            seed=seed,
        )
        for name in ("yard", "gate")
    }
    speed = {query: generator.choice((0.0, 0.001, 0.004)) for query in ON}
    failing = {query: generator.choice((0.0, 0.0, 0.2, 1.0)) for query in ON}
    trouble = generator.choice((0.0, 0.0, 0.05, 0.5))

    def infer(query: str, frame: Frame) -> Result:
        time.sleep(speed[query])
        if generator.random() < failing[query]:
            raise RuntimeError("no luck")
        return answer(query, frame)

    runs(
        feeds,
        infer,
        spec=known({name: {1: 1.0, 2: 1.5, 4: 2.5} for name in MODELS}),
        policy=generator.choice(list(POLICIES)),
        load=generator.choice(SPEEDS),
        fails=lambda count: generator.random() < trouble,
        live=live,
        frames=generator.randint(1, 50),
        duration=0.5,
    )

"""Frames between a feed and its queries: which ones are taken, and when they leave with which results."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Script, answer

from gemel.frames.frame import Frame
from gemel.runtime.decode.results import Class, Result
from gemel.runtime.feeds import Feed
from gemel.runtime.loop import channel as loop_channel
from gemel.runtime.loop.channel import Channel, Left, QueryState


class Box(Feed):
    """A feed whose frames a test delivers. Frame k arrives at second k."""

    def __init__(self) -> None:
        super().__init__("yard", Script(0))
        self.held: list[Frame] = []

    def deliver(self, count: int = 1) -> None:
        for _ in range(count):
            self.held.append(Frame("yard", self.delivered, np.zeros((1, 1, 3), np.uint8), 0.0, float(self.delivered)))
            self.counts.delivered += 1

    def take(self) -> Frame | None:
        return self.held.pop(0) if self.held else None


def make(queries: str = "a", depth: int = 1) -> tuple[Box, Channel, list[QueryState]]:
    box = Box()
    channel = Channel(box, depth)
    channel.queries += [QueryState(name, channel) for name in queries]
    return box, channel, channel.queries


def indices(frames: Sequence[Frame]) -> list[int]:
    return [frame.index for frame in frames]


def names(left: Sequence[Left]) -> list[tuple[int, dict[str, str]]]:
    """Return the frames that left, and by query the label of its result: query and frame index."""
    return [(frame.index, {query: label(result) for query, result in results.items()}) for frame, results in left]


def label(result: Result) -> str:
    assert isinstance(result, tuple) and isinstance(result[0], Class)
    return result[0].label


def process(query: QueryState, count: int = 1, *, live: bool = True) -> list[int]:
    frames = query.take(count, live=live)
    for frame in frames:
        query.succeeded(frame, answer(query.name, frame), 1.0)
    return indices(frames)


class TestLive:
    def test_only_the_newest_frames_are_looked_at(self) -> None:
        box, channel, (a,) = make(depth=3)
        assert channel.advance(live=True) == [] and a.fresh(3, -1, live=True) == []
        box.deliver(5)
        assert channel.advance(live=True) == []
        assert indices(a.waiting) == [2, 3, 4]
        assert indices(a.fresh(2, -1, live=True)) == [3, 4]
        assert indices(a.fresh(9, -1, live=True)) == [2, 3, 4]

    @pytest.mark.parametrize(("oldest", "expected"), [(1.5, [2, 3]), (2.0, [2, 3]), (3.5, [3]), (math.inf, [3])])
    def test_of_frames_that_are_too_old_only_the_very_newest_counts(self, oldest: float, expected: list[int]) -> None:
        box, channel, (a,) = make(depth=4)
        box.deliver(4)
        channel.advance(live=True)
        assert indices(a.fresh(4, oldest, live=True)) == expected

    def test_what_was_taken_and_all_before_it_waits_no_longer(self) -> None:
        box, channel, (a, b) = make("ab", depth=4)
        box.deliver(4)
        channel.advance(live=True)
        assert process(a, 2) == [2, 3]
        assert a.waiting == []
        assert indices(b.waiting) == [0, 1, 2, 3]
        box.deliver()
        channel.advance(live=True)
        assert indices(a.fresh(4, -1, live=True)) == [4]

    def test_a_frame_leaves_with_its_own_result_or_the_latest_before_it(self) -> None:
        box, channel, (a, b) = make("ab")
        box.deliver()
        channel.advance(live=True)
        process(a)
        box.deliver()
        assert names(channel.advance(live=True)) == [(0, {"a": "a-0"})]
        process(b)
        box.deliver()
        assert names(channel.advance(live=True)) == [(1, {"a": "a-0", "b": "b-1"})]
        process(a)
        process(b)
        assert names(channel.close()) == [(2, {"a": "a-2", "b": "b-2"})]

    def test_a_later_result_is_not_shown_on_an_earlier_frame(self) -> None:
        box, channel, (a, b) = make("ab", depth=3)
        box.deliver(2)
        channel.advance(live=True)
        process(a, 2)
        process(b, 1)
        assert names(channel.close()) == [(0, {"a": "a-0"}), (1, {"a": "a-1", "b": "b-1"})]

    def test_a_frame_that_nobody_processed_leaves_without_a_word(self) -> None:
        box, channel, (a,) = make()
        box.deliver(2)
        assert channel.advance(live=True) == []
        (frame,) = a.take(1, live=True)
        a.failed("no", 10)
        box.deliver()
        assert frame.index == 1 and channel.advance(live=True) == []
        assert channel.close() == []

    def test_nothing_is_shown_of_a_query_that_was_given_up(self) -> None:
        box, channel, (a, b) = make("ab")
        box.deliver()
        channel.advance(live=True)
        process(a)
        process(b)
        box.deliver()
        assert names(channel.advance(live=True)) == [(0, {"a": "a-0", "b": "b-0"})]
        a.take(1, live=True)
        a.failed("no", 1)
        process(b)
        assert (a.alive, channel.wanted) == (False, True)
        assert names(channel.close()) == [(1, {"b": "b-1"})]

    def test_results_of_frames_that_left_are_not_kept(self) -> None:
        box, channel, (a,) = make(depth=2)
        for _ in range(20):
            box.deliver()
            channel.advance(live=True)
            process(a)
        assert len(channel.results) == len(channel.frames) == 2


class TestOffline:
    def test_frames_are_taken_in_order_however_old(self) -> None:
        box, channel, (a,) = make(depth=3)
        box.deliver(5)
        channel.advance(live=False)
        assert indices(a.fresh(2, math.inf, live=False)) == [0, 1]
        assert process(a, 2, live=False) == [0, 1]
        assert indices(a.waiting) == [2]

    def test_a_frame_stays_until_every_query_took_it(self) -> None:
        box, channel, (a, b) = make("ab", depth=2)
        box.deliver(4)
        channel.advance(live=False)
        process(a, 2, live=False)
        assert channel.advance(live=False) == []
        assert (indices(channel.frames), len(box.held)) == ([0, 1], 2)
        process(b, 1, live=False)
        assert names(channel.advance(live=False)) == [(0, {"a": "a-0", "b": "b-0"})]
        assert (indices(channel.frames), indices(a.waiting), indices(b.waiting)) == ([1, 2], [2], [1, 2])

    def test_nobody_waits_for_a_query_that_was_given_up(self) -> None:
        box, channel, (a, b) = make("ab")
        box.deliver(2)
        channel.advance(live=False)
        process(a, live=False)
        b.take(1, live=False)
        b.failed("no", 1)
        assert names(channel.advance(live=False)) == [(0, {"a": "a-0"})]
        process(a, live=False)
        assert names(channel.advance(live=False)) == [(1, {"a": "a-1"})]


class TestFailures:
    def test_only_failures_in_a_row_count(self) -> None:
        box, channel, (a,) = make()
        box.deliver()
        channel.advance(live=True)
        a.failed("one", 2)
        process(a)
        a.failed("two", 2)
        assert a.alive
        a.failed("three", 2)
        assert not a.alive and not channel.wanted
        stats = a.stats()
        assert (stats.frames, stats.processed, stats.skipped, stats.errors) == (1, 1, 0, 3)
        assert (stats.last_error, stats.gave_up) == ("three", True)

    def test_a_query_that_was_given_up_is_tried_again_after_a_pause_that_grows(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr(loop_channel, "monotonic", lambda: now)
        box, channel, (a,) = make()
        box.deliver()
        channel.advance(live=True)
        a.failed("one", 2, again=True)
        assert a.alive and not a.gave_up
        a.failed("two", 2, again=True)
        pauses: list[float] = []
        for _ in range(8):
            assert not a.alive and a.gave_up and channel.wanted and a.waiting == []
            pauses.append(a.pause_left)
            now += a.pause_left
            assert a.alive and a.gave_up and indices(a.waiting) == [0]
            a.failed("again", 2, again=True)
        assert pauses == [10, 20, 40, 80, 160, 320, 600, 600]
        now += a.pause_left
        assert a.stats().gave_up
        process(a)
        assert (a.stats().gave_up, a.stats().given_up, a.counters.failures_in_a_row) == (False, 9, 0)
        # Failures count anew.
        a.failed("one", 2, again=True)
        assert a.alive
        a.failed("two", 2, again=True)
        assert a.pause_left == 10

    def test_what_it_said_before_the_pause_is_not_shown_after_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 1000.0
        monkeypatch.setattr(loop_channel, "monotonic", lambda: now)
        box, channel, (a, b) = make("ab")
        for _ in range(2):
            box.deliver()
            channel.advance(live=True)
            process(a)
        a.failed("no", 1, again=True)
        now += a.pause_left
        box.deliver()
        channel.advance(live=True)
        process(b)
        box.deliver()
        assert names(channel.advance(live=True)) == [(2, {"b": "b-2"})]
        process(a)
        process(b)
        assert names(channel.close()) == [(3, {"a": "a-3", "b": "b-3"})]

    def test_a_query_that_was_given_up_has_no_frames(self) -> None:
        box, channel, (a,) = make()
        a.failed("no", 1)
        box.deliver()
        channel.advance(live=True)
        assert a.waiting == a.fresh(1, -1, live=True) == []


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), st.integers(1, 5)),
        st.tuples(st.just("advance"), st.just(0)),
        st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 4)),
        st.tuples(st.sampled_from(["a fails", "b fails", "c fails"]), st.integers(1, 2)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(st.booleans(), st.integers(1, 4), STEPS)
def test_a_frame_leaves_once_and_in_order_if_a_query_processed_it(
    live: bool, depth: int, steps: list[tuple[str, int]]
) -> None:
    box, channel, queries = make("abc", depth)
    processed: dict[str, list[int]] = {query.name: [] for query in queries}
    handled: dict[str, list[int]] = {query.name: [] for query in queries}
    order: list[int] = []

    def leave(left: Sequence[Left]) -> None:
        for index, results in names(left):
            order.append(index)
            for query in queries:
                known = [each for each in processed[query.name] if each <= index]
                expected = f"{query.name}-{known[-1]}" if query.alive and known else None
                assert results.get(query.name) == expected

    for what, count in steps:
        name, _, fails = what.partition(" ")
        if what == "deliver":
            box.deliver(count)
        elif what == "advance":
            leave(channel.advance(live=live))
            assert len(channel.frames) <= depth
            if not live and all(query.alive for query in queries):
                assert indices(channel.frames)[:1] in ([], [min(query.handled for query in queries) + 1])
        else:
            (query,) = (each for each in queries if each.name == name)
            fresh = query.fresh(count, 0.0, live=live)
            handled[name] += indices(fresh)
            if fresh and fails:
                assert query.take(len(fresh), live=live) == fresh
                query.failed("no", 2)
            elif fresh:
                processed[name] += process(query, len(fresh), live=live)
                assert processed[name][-len(fresh) :] == indices(fresh)
    leave(channel.close())
    assert order == sorted(set().union(*processed.values()))
    for query in queries:
        taken = handled[query.name]
        assert taken == sorted(set(taken))
        if not live:
            assert taken == list(range(query.handled + 1))


def test_after_a_change_of_the_run_no_more_frames_wait_than_the_new_depth() -> None:
    box, before, _ = make(depth=8)
    box.deliver(6)
    before.advance(live=True)
    after = Channel(box, 1)
    after.queries.append(QueryState("a", after))
    after.go_on(before)
    box.deliver(2)
    after.advance(live=True)
    assert indices(list(after.frames)) == [7] and box.depth == 1


def test_a_pause_outlives_a_change_of_the_feed() -> None:
    _, before, (query,) = make()
    query.pause(True)
    before.pause(True)
    query.counters.processed = 5
    _, after, (other,) = make()
    other.go_on(query)
    after.go_on(before)
    assert other.paused and after.paused and after.feed._pausing.is_set()
    # The frames of another feed are counted from 0.
    assert other.counters.processed == 0

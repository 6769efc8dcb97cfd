"""Reviews say when a new plan is needed, and by which profile."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from profiles import profile

from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.review import Review

TIMES: Mapping[str, Mapping[int, float]] = {"a": {1: 10, 2: 18, 4: 34, 8: 66}, "b": {1: 20}, "c": {1: 5, 4: 20}}


@pytest.fixture
def known() -> Profile:
    return profile({"a": ["A"], "b": ["B"], "c": ["C"]}, run=TIMES)


@pytest.fixture
def review(known: Profile) -> Review:
    return Review(known)


def times(found: Profile | None) -> Mapping[str, Mapping[int, float]]:
    assert found is not None
    return {name: dict(model.run_ms) for name, model in found.models.items()}


def ran(review: Review, query: str, milliseconds: float, *, frames: int = 1, count: int = 9) -> None:
    for _ in range(count):
        review.ran([query], review.profile.between_ms(query, frames), milliseconds)


def test_the_plan_is_looked_at_once_a_second(review: Review) -> None:
    assert not review.due(999)
    assert review.due(1000)
    assert planned(review, "abc", 1300) is None
    assert not review.due(2299)
    assert review.due(2300)


def planned(review: Review, active: Collection[str], now: float) -> Profile | None:
    """Review the plan, and follow a new one at once if one is needed."""
    found = review.revised(active, now)
    if found is not None:
        review.follow(found)
    return found


def test_a_plan_that_fits_stays(review: Review, known: Profile) -> None:
    for query in "abc":
        ran(review, query, known.run_ms(query, 1))
    assert planned(review, "abc", 1000) is None
    assert (review.replans, review.profile) == (0, known)


def test_queries_without_frames_are_left_out_until_they_have_some(review: Review, known: Profile) -> None:
    found = planned(review, "ca", 1000)
    assert found is not None and found is review.profile
    assert list(found.queries) == ["a", "c"]
    assert found.segments == known.segments and found.models is known.models
    assert planned(review, "ac", 2000) is None
    found = planned(review, "bca", 3000)
    assert found is not None
    assert list(found.queries) == ["a", "b", "c"]
    assert review.replans == 2


def test_while_nobody_has_frames_the_plan_stays_as_it_is(review: Review, known: Profile) -> None:
    review.lost = True
    ran(review, "a", 100)
    assert planned(review, [], 1000) is None
    assert (review.replans, review.profile, review.lost) == (0, known, True)


def test_runs_that_take_much_longer_give_a_model_other_times(review: Review) -> None:
    ran(review, "a", 20)
    ran(review, "b", 20)
    found = times(planned(review, "abc", 1000))
    assert found["a"] == {1: 20, 2: 36, 4: 68, 8: 132}
    assert (found["b"], found["c"]) == (TIMES["b"], TIMES["c"])
    # With these times in the profile, further turns are as expected.
    ran(review, "a", 20)
    assert planned(review, "abc", 2000) is None
    assert review.replans == 1


def test_runs_that_take_much_shorter_do_too(review: Review) -> None:
    ran(review, "c", 5, frames=4)
    assert times(planned(review, "abc", 1000))["c"] == {1: 1.25, 4: 5}


@pytest.mark.parametrize("milliseconds", [7.0, 14.9])
def test_runs_that_take_a_little_longer_or_shorter_change_nothing(review: Review, milliseconds: float) -> None:
    ran(review, "a", milliseconds, count=50)
    assert planned(review, "abc", 1000) is None


def test_a_few_runs_are_not_enough(review: Review) -> None:
    ran(review, "a", 100, count=8)
    assert planned(review, "abc", 1000) is None
    ran(review, "a", 100, count=1)
    assert planned(review, "abc", 2000) is not None


def test_some_runs_among_many_may_take_long(review: Review) -> None:
    ran(review, "a", 500, count=4)
    ran(review, "a", 10, count=5)
    assert planned(review, "abc", 1000) is None
    # Turns of long ago do not count.
    ran(review, "a", 500, count=20)
    ran(review, "a", 10)
    assert planned(review, "abc", 2000) is None


@pytest.mark.parametrize("frames", range(1, 9))
def test_batches_that_are_not_full_take_as_long_as_they_should(review: Review, frames: int) -> None:
    ran(review, "a", 2 + 8 * frames, frames=frames)
    assert planned(review, "abc", 1000) is None


def test_queries_of_one_model_are_measured_together() -> None:
    queries = {name: {"model": "a", "fps": 10} for name in ("one", "two")}
    review = Review(profile({"a": ["A"]}, queries=queries))
    ran(review, "one", 30, count=5)
    ran(review, "two", 30, count=4)
    assert times(planned(review, ["one", "two"], 1000)) == {"a": {1: 30}}


def test_what_was_measured_is_still_known_when_a_query_comes_back(review: Review) -> None:
    ran(review, "b", 60)
    assert times(planned(review, "ab", 1000))["b"] == {1: 60}
    assert times(planned(review, "ac", 2000))["b"] == {1: 60}
    assert times(planned(review, "abc", 3000))["b"] == {1: 60}


def test_a_model_that_takes_no_time_is_not_compared() -> None:
    review = Review(profile({"a": ["A"]}, run=0.0))
    ran(review, "a", 5)
    assert planned(review, "a", 1000) is None


def test_memory_that_was_lost_calls_for_the_same_plan_again(review: Review, known: Profile) -> None:
    review.lost = True
    # Not at once: if loading keeps failing, every query must still get its turn.
    assert not review.due(900)
    assert planned(review, "abc", 1000) == known
    assert (review.replans, review.lost) == (1, False)
    assert planned(review, "abc", 2000) is None


def test_the_old_plan_counts_until_the_new_one_is_followed(review: Review, known: Profile) -> None:
    review.lost = True
    found = review.revised("ab", 1000)
    assert found is not None
    assert (review.replans, review.lost, review.profile) == (0, True, known)
    review.follow(found)
    assert (review.replans, review.lost, review.profile) == (1, False, found)


def test_patience_with_a_query_that_comes_and_goes_grows(review: Review) -> None:
    assert review.patience("b") == 1
    found = []
    for now in range(0, 14_000, 2000):
        planned(review, "ac", now)
        planned(review, "abc", now + 1000)
        found.append(review.patience("b"))
    assert found == [2, 4, 8, 16, 16, 16, 16]
    assert review.patience("a") == 1

"""Transfers from turn to turn, replayed on a memory that only counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import RULES, budgets, profile, profiles

from gemel.runtime.planning.profile import Profile
from gemel.runtime.planning.residency import Rule, Step, Transfer, settled, steps


def turns(known: Profile, budget: int, order: Sequence[str], rule: Rule, count: int = 30) -> list[Step]:
    return list(islice(steps(known, budget, order, rule), count))


def transfers(found: Sequence[Step]) -> Iterator[tuple[Transfer, set[str], set[str]]]:
    """Yield each transfer with the segments in memory after its evictions, and after its loads."""
    memory: set[str] = set()
    for step in found:
        for part in (step.ahead, step.then):
            assert len(set(part.evict)) == len(part.evict)
            assert set(part.evict) <= memory
            memory = memory - set(part.evict)
            gone = memory
            assert len(set(part.load)) == len(part.load)
            assert not memory & set(part.load)
            memory = memory | set(part.load)
            yield part, gone, memory


def loaded(found: Sequence[Step]) -> list[str]:
    """Return the segments that each turn loads, as sorted letters."""
    return ["".join(sorted((*step.ahead.load, *step.then.load))) for step in found]


def evicted(found: Sequence[Step]) -> list[str]:
    """Return the segments that each turn evicts, as sorted letters."""
    return ["".join(sorted((*step.ahead.evict, *step.then.evict))) for step in found]


def of_differences(load_ms: float) -> Profile:
    """Return a profile of models whose kernels are computed from a base of 10 bytes and codes of 1 byte."""
    segments = {
        "base": {"bytes": 10},
        **{f"{name}-codes": {"bytes": 1} for name in "abc"},
        **{name: {"bytes": 10, "load_ms": load_ms, "sources": ["base", f"{name}-codes"]} for name in "abc"},
    }
    models = {name: ["base", f"{name}-codes", name] for name in "abc"}
    return profile(models, segments=segments)


@pytest.mark.parametrize("load_ms", [0.1, 100.0])
@pytest.mark.parametrize("evict", ["farthest", "recent", "least-recent"])
@pytest.mark.parametrize("ahead", ["part", "all", "none"])
@pytest.mark.parametrize("budget", [21, 22, 25, 31, 32, 33, 42, 43])
def test_what_is_computed_comes_after_its_sources(load_ms: float, evict: Any, ahead: Any, budget: int) -> None:
    known = of_differences(load_ms)
    memory: set[str] = set()
    for step in turns(known, budget, "abc", Rule(evict, ahead=ahead)):
        for part in (step.ahead, step.then):
            memory -= set(part.evict)
            for segment in part.load:
                assert set(known.segments[segment].sources) <= memory
                memory.add(segment)
            assert sum(known.segments[segment].bytes for segment in memory) <= budget
        assert set(known.segments_of(step.query)) <= memory


def test_codes_come_ahead_where_the_kernels_do_not_fit() -> None:
    found = turns(of_differences(100.0), 23, "abc", Rule(ahead="part"))
    assert found[1].ahead.load == ("b-codes",)
    assert found[1].then.load == ("b",)


@st.composite
def cases(draw: st.DrawFn, rules: st.SearchStrategy[Rule] = RULES) -> tuple[Profile, int, list[str], Rule]:
    known = draw(profiles())
    return known, draw(budgets(known)), draw(st.permutations(sorted(known.queries))), draw(rules)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_a_query_has_its_weights_from_its_turn_until_the_next(case: tuple[Profile, int, list[str], Rule]) -> None:
    known, budget, order, rule = case
    found = turns(known, budget, order, rule)
    assert [step.query for step in found] == [order[index % len(order)] for index in range(len(found))]
    runs: set[str] = set()
    moved = list(transfers(found))
    for step, (_, early, _), (_, _, memory) in zip(found, moved[::2], moved[1::2], strict=True):
        assert runs <= early
        runs = set(known.segments_of(step.query))
        assert runs <= memory


@pytest.mark.parametrize("whole", [False, True])
def test_the_budget_is_never_exceeded(whole: bool) -> None:
    @settings(deadline=None, max_examples=100)
    @given(cases(RULES.filter(lambda rule: rule.whole == whole)))
    def check(case: tuple[Profile, int, list[str], Rule]) -> None:
        known, budget, order, rule = case
        for _, _, memory in transfers(turns(known, budget, order, rule)):
            assert sum(known.segments[segment].bytes for segment in memory) <= budget

    check()


def test_models_with_the_same_weights_go_together() -> None:
    known = profile({"a": ["s"], "b": ["s"], "c": ["t"]})
    found = turns(known, 1, "abc", Rule("recent", whole=True, ahead="none"), 6)
    assert loaded(found) == ["s", "", "t", "s", "", "t"]
    assert evicted(found) == ["", "", "s", "t", "", "s"]


@settings(deadline=None, max_examples=50)
@given(cases())
def test_what_comes_ahead(case: tuple[Profile, int, list[str], Rule]) -> None:
    known, budget, order, rule = case
    found = turns(known, budget, order, rule)
    assert found[0].ahead == Transfer()
    if rule.ahead == "none":
        assert all(step.ahead == Transfer() for step in found)
    if rule.ahead == "all":
        assert not any(step.ahead.load and step.then.load for step in found)
    for last, step in pairwise(found):
        both = {*known.segments_of(last.query), *known.segments_of(step.query)}
        if rule.ahead != "none" and sum(known.segments[segment].bytes for segment in both) <= budget:
            assert step.then == Transfer()


@settings(deadline=None, max_examples=50)
@given(cases(RULES.filter(lambda rule: rule.whole)))
def test_models_that_come_and_go_as_a_whole_are_never_left_in_part(case: tuple[Profile, int, list[str], Rule]) -> None:
    known, budget, order, rule = case
    models = [set(known.segments_of(query)) for query in order]
    for _, _, memory in list(transfers(turns(known, budget, order, rule)))[1::2]:
        assert set().union(*(model for model in models if model <= memory)) == memory


@settings(deadline=None, max_examples=25)
@given(cases())
def test_what_fits_stays(case: tuple[Profile, int, list[str], Rule]) -> None:
    known, _, order, rule = case
    found = turns(known, known.budget("all"), order, rule)
    assert all(not step.ahead.evict and not step.then.evict for step in found)
    later = found[len(order) :]
    assert all(not step.ahead.load and not step.then.load for step in later)


@settings(deadline=None, max_examples=15)
@given(cases())
def test_the_same_steps_each_time(case: tuple[Profile, int, list[str], Rule]) -> None:
    assert turns(*case) == turns(*case)


@settings(deadline=None, max_examples=50)
@given(cases(RULES.filter(lambda rule: not rule.whole)))
def test_nothing_goes_in_vain(case: tuple[Profile, int, list[str], Rule]) -> None:
    known, budget, order, rule = case
    for part, _, memory in transfers(turns(known, budget, order, rule)):
        free = budget - sum(known.segments[segment].bytes for segment in memory)
        assert all(known.segments[segment].bytes > free for segment in part.evict)


@settings(deadline=None, max_examples=25)
@given(cases())
def test_settled_cycles_come_again_and_again(case: tuple[Profile, int, list[str], Rule]) -> None:
    order = case[2]
    cycles = settled(*case)
    found = turns(*case, (25 + 2 * len(cycles)) * len(order))
    each = [found[start : start + len(order)] for start in range(0, len(found), len(order))]
    assert any(each[start : start + 2 * len(cycles)] == cycles * 2 for start in range(25))


@pytest.mark.parametrize(("rule", "loads"), [(Rule(), {2, 4}), (Rule("least-recent", ahead="none"), {6})])
def test_of_six_equal_models_four_fit(rule: Rule, loads: set[int]) -> None:
    cycles = settled(profile({name: [name.upper()] for name in "abcdef"}), 4, "abcdef", rule)
    counts = [len("".join(loaded(cycle))) for cycle in cycles]
    assert set(counts) == loads
    assert sum(counts) / len(counts) == sum(loads) / len(loads)


def test_a_settled_cycle_moves_nothing_if_all_fits() -> None:
    found = settled(profile({"a": ["A", "S"], "b": ["S"]}), 2, "ab", Rule())
    assert found == [[Step("a", Transfer(), Transfer()), Step("b", Transfer(), Transfer())]]


SINGLE = {name: [name.upper()] for name in "abcd"}


def test_what_is_next_used_last_goes_first() -> None:
    found = turns(profile(SINGLE), 3, "abcd", Rule(ahead="none"), 10)
    assert loaded(found) == ["A", "B", "C", "D", "", "", "C", "", "", "B"]
    # At the turn of d, A is used in 1 turn, B in 2, C in 3. At the next turn of c, D in 1, A in 2, B in 3.
    assert evicted(found) == ["", "", "", "C", "", "", "B", "", "", "A"]


TWICE = {"a": ["A"], "b": ["B"], "e": ["A"], "d": ["D"]}
"""Models of which two use A: those of the first and of the third turn."""


def test_weights_that_were_used_last_may_be_used_soonest() -> None:
    assert evicted(turns(profile(TWICE), 2, "abed", Rule(ahead="none"), 4)) == ["", "", "", "B"]


def test_what_was_used_last_goes_first_by_the_rule_recent() -> None:
    found = turns(profile(TWICE), 2, "abed", Rule("recent", ahead="none"), 8)
    assert evicted(found) == ["", "", "", "A", "D", "", "", "A"]


def test_what_was_not_used_for_longest_goes_first_by_the_rule_least_recent() -> None:
    found = turns(profile(SINGLE), 3, "abcd", Rule("least-recent", ahead="none"), 7)
    assert loaded(found) == ["A", "B", "C", "D", "A", "B", "C"]
    assert evicted(found) == ["", "", "", "A", "B", "C", "D"]


def test_what_runs_stays_while_the_next_weights_come() -> None:
    # The rule alone would evict C, which was used last.
    found = turns(profile(SINGLE), 3, "abcd", Rule("recent"), 4)
    assert found[3] == Step("d", Transfer(("B",), ("D",)), Transfer())


def test_as_much_ahead_as_there_is_room_for_the_slowest_first() -> None:
    known = profile({"a": ["A"], "b": ["X", "Y", "Z"]}, {"A": 5, "X": 1, "Y": 3, "Z": 2})
    assert turns(known, 8, "ab", Rule(), 2)[1] == Step("b", Transfer((), ("Y",)), Transfer(("A",), ("X", "Z")))
    assert turns(known, 10, "ab", Rule(), 2)[1] == Step("b", Transfer((), ("Y", "Z")), Transfer(("A",), ("X",)))


def test_all_ahead_or_nothing() -> None:
    known = profile({"a": ["A"], "b": ["X", "Y", "Z"]}, {"A": 5, "X": 1, "Y": 3, "Z": 2})
    rule = Rule(ahead="all")
    assert turns(known, 10, "ab", rule, 2)[1] == Step("b", Transfer(), Transfer(("A",), ("X", "Y", "Z")))
    assert turns(known, 11, "ab", rule, 2)[1] == Step("b", Transfer((), ("X", "Y", "Z")), Transfer())


def test_weights_come_while_a_model_without_segments_runs() -> None:
    # A model without segments has all its weights inside its program.
    found = turns(profile({"a": [], "b": ["B"]}), 1, "ab", Rule(), 2)
    assert found[1] == Step("b", Transfer((), ("B",)), Transfer())


def test_a_model_that_goes_leaves_what_others_share_with_it() -> None:
    known = profile({"a": ["S", "A"], "b": ["S", "B"], "c": ["C"]})
    found = turns(known, 3, "abc", Rule("recent", whole=True, ahead="none"), 7)
    assert loaded(found) == ["AS", "B", "C", "", "B", "", "A"]
    assert evicted(found) == ["", "", "B", "", "A", "", "C"]


def test_the_last_model_takes_shared_weights_with_it() -> None:
    known = profile({"a": ["S", "A"], "b": ["S", "B"], "c": ["C"]}, {"C": 3})
    found = turns(known, 3, "abc", Rule("recent", whole=True, ahead="none"), 3)
    assert evicted(found)[2] == "ABS"


def test_segments_go_one_by_one_where_models_need_not_go_as_a_whole() -> None:
    known = profile({"a": ["A", "B"], "c": ["C"]})
    assert len(evicted(turns(known, 2, "ac", Rule(ahead="none"), 2))[1]) == 1
    assert evicted(turns(known, 2, "ac", Rule(whole=True, ahead="none"), 2))[1] == "AB"


def test_small_weights_stay_if_large_ones_that_go_after_them_are_enough() -> None:
    known = profile(SINGLE, {"C": 4, "D": 4})
    found = turns(known, 7, "abcd", Rule("least-recent", ahead="none"), 6)
    assert evicted(found)[3] == "C"
    assert loaded(found)[4:] == ["", ""]


def test_weights_that_stayed_are_as_recent_as_before() -> None:
    models = {**SINGLE, "e": ["E"]}
    # For d, the rule evicts C first and then B, which is enough alone.
    known = profile(models, {"B": 3, "D": 3, "E": 4})
    assert evicted(turns(known, 5, "abcde", Rule("recent", ahead="none"), 5))[3:] == ["B", "CD"]
    # For d, the rule evicts A and B first and then C, which is enough alone.
    known = profile(models, {"C": 4, "D": 4, "E": 2})
    assert evicted(turns(known, 7, "abcde", Rule("least-recent", ahead="none"), 5))[3:] == ["C", "A"]

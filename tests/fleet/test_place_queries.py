"""Placement of queries on boxes: against all assignments, with and without the exact solver, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest
from placement_cases import best_score, large_case, small_case

from gemel.errors import MissingExtraError
from gemel.fleet import exact_placement, place_queries
from gemel.fleet.exact_placement import program_rows, solve_placement
from gemel.fleet.local_search import fill_first_fit, search_placement
from gemel.fleet.memory_bound import fewest_boxes, memory_bound
from gemel.fleet.place_queries import MOST_ROWS
from gemel.fleet.placement_case import LEFT_OUT, PlacedBox, PlacedQuery, PlacementCase, make_case

CASES = range(30)
EVERYWHERE = frozenset({0, 1})


def fleet(
    weights: Sequence[dict[str, int]], boxes: Sequence[PlacedBox], queries: Sequence[PlacedQuery] | None = None
) -> PlacementCase:
    """Return a case of queries with some weights, which may be on every box and take no time unless they are given."""
    everywhere = frozenset(range(len(boxes)))
    plain = [PlacedQuery(f"q{index}", 0.0, everywhere) for index in range(len(weights))]
    return make_case(queries or plain, boxes, weights)


@pytest.mark.parametrize("seed", CASES)
def test_the_exact_solver_finds_and_proves_the_best_assignment(seed: int) -> None:
    case = small_case(seed, most_queries=5)
    best = best_score(case)
    placement = place_queries.place_queries(case, 60, exact=True)
    assert case.allows(placement.assignment)
    assert case.score(placement.assignment) == best
    assert placement.proven and placement.small
    assert (placement.bound, placement.gap(int(best[-1]))) == (best[-1], 0.0)


@pytest.mark.parametrize("seed", CASES)
def test_the_exact_solver_needs_no_good_start(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_queries, "search_placement", lambda case, *_, **__: fill_first_fit(case))
    case = small_case(seed, most_queries=5)
    placement = place_queries.place_queries(case, 60, exact=True)
    assert placement.proven
    assert case.score(placement.assignment) == best_score(case)


def test_the_heuristic_alone_is_allowed_and_nearly_always_the_best() -> None:
    worse = 0
    for seed in CASES:
        case = small_case(seed, most_queries=5)
        placement = place_queries.place_queries(case, 60, exact=False)
        best, reached = best_score(case), case.score(placement.assignment)
        assert case.allows(placement.assignment)
        assert reached >= best
        assert not placement.proven or reached == best
        worse += reached > best
        if not any(best[:-1]):
            assert memory_bound(case, range(len(case.queries))) <= best[-1]
    assert worse <= 3


def test_a_box_holds_what_queries_share_once() -> None:
    twins, others = {"common": 50, "head": 10}, {"backbone": 40, "tail": 5}
    case = fleet([twins, others, twins, others], [PlacedBox("a", 60), PlacedBox("b", 60)])
    placement = place_queries.place_queries(case)
    first, second, third, fourth = placement.assignment
    assert first == third != second == fourth
    assert case.memory(placement.assignment) == 60 + 45
    assert case.alone == (60, 45, 60, 45)


def test_loads_and_numbers_of_queries_spread_what_shares() -> None:
    same = [{"common": 50}] * 3
    queries = [PlacedQuery(f"q{index}", 0.5, EVERYWHERE) for index in range(3)]
    by_load = fleet(same, [PlacedBox("a", 99), PlacedBox("b", 99)], queries)
    assert by_load.memory(place_queries.place_queries(by_load).assignment) == 100
    by_speed = fleet(same, [PlacedBox("a", 99), PlacedBox("b", 99, speed=1.5)], queries)
    assert place_queries.place_queries(by_speed).assignment == (1, 1, 1)
    by_number = fleet(same, [PlacedBox("a", 99, most=2), PlacedBox("b", 99, most=1)])
    assert sorted(place_queries.place_queries(by_number).assignment) == [0, 0, 1]


def test_priority_comes_before_weight_and_weight_before_number() -> None:
    boxes = [PlacedBox("a", 100)]
    home = frozenset({0})

    def left_out(*queries: tuple[int, float, int], exact: bool) -> set[int]:
        """Place queries of given bytes, weight and priority; return those that are left out."""
        weights = [{f"own {index}": size} for index, (size, *_) in enumerate(queries)]
        placed = [PlacedQuery(f"q{i}", 0.0, home, weight, level) for i, (_, weight, level) in enumerate(queries)]
        found = place_queries.place_queries(fleet(weights, boxes, placed), 60, exact=exact).assignment
        return {index for index, box in enumerate(found) if box == LEFT_OUT}

    for exact in (True, False):
        assert left_out((100, 1, 1), (50, 9, 0), (50, 9, 0), exact=exact) == {1, 2}
        assert left_out((100, 3, 0), (50, 1, 0), (50, 1, 0), exact=exact) == {1, 2}
        assert left_out((100, 1, 0), (50, 1, 0), (50, 1, 0), exact=exact) == {0}


def test_a_query_that_fits_on_no_box_does_not_keep_others_out_or_spoil_the_proof() -> None:
    case = fleet(
        [{"huge": 500}, {"common": 10, "x": 1}, {"common": 10, "y": 1}], [PlacedBox("a", 20), PlacedBox("b", 20)]
    )
    placement = place_queries.place_queries(case)
    assert placement.assignment[0] == LEFT_OUT
    assert placement.assignment[1] == placement.assignment[2] != LEFT_OUT
    assert (placement.proven, placement.bound) == (True, 12)
    nothing = place_queries.place_queries(fleet([{"huge": 500}], [PlacedBox("a", 20)]))
    assert (nothing.assignment, nothing.proven, nothing.bound) == ((LEFT_OUT,), True, 0)


def test_without_the_solver_a_bound_is_known_if_everything_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_queries, "has_solver", lambda: False)
    # The bound counts the common part twice for their loads, but does not see that the odd query fits beside neither.
    queries = [PlacedQuery(f"q{index}", 0.6, EVERYWHERE) for index in range(2)]
    case = fleet([{"common": 50, "x": 1}, {"common": 50, "y": 1}], [PlacedBox("a", 99), PlacedBox("b", 99)], queries)
    placement = place_queries.place_queries(case)
    assert (placement.proven, placement.bound) == (True, 102)
    short = fleet([{"x": 10}, {"y": 11}], [PlacedBox("a", 12)])
    placement = place_queries.place_queries(short, 0.3)
    assert placement.assignment.count(LEFT_OUT) == 1
    assert (placement.proven, placement.bound, placement.gap(10)) == (False, None, None)


def test_a_missing_solver_is_named_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without_scipy(name: str, *rest: object) -> object:
        if name.startswith("scipy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    assert not exact_placement.has_solver()
    case = fleet([{"x": 10}, {"y": 11}], [PlacedBox("a", 12)])
    with pytest.raises(MissingExtraError, match=r"\[place\]"):
        place_queries.place_queries(case, 5, exact=True)


def test_a_large_fleet_ends_at_the_deadline_with_an_allowed_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(place_queries, "monotonic", lambda: next(clock) / 100)
    case = large_case(0)
    assert program_rows(case) > MOST_ROWS
    placement = place_queries.place_queries(case, 3.0)
    assert 3.0 <= placement.seconds < 3.2
    assert case.allows(placement.assignment)
    assert not placement.small and not placement.proven
    blind = fill_first_fit(case)
    assert case.allows(blind)
    assert case.score(placement.assignment) < case.score(blind)
    assert LEFT_OUT not in placement.assignment
    gap = placement.gap(case.memory(placement.assignment))
    assert gap is not None and 0 < gap < 0.3


def test_more_time_is_never_worse() -> None:
    case = large_case(1, queries=30, boxes=6)
    calls = iter(range(10**9))
    short = search_placement(case, lambda: next(calls) > 20)
    calls = iter(range(10**9))
    longer = search_placement(case, lambda: next(calls) > 400)
    assert case.score(longer) <= case.score(short)
    calls = iter(range(10**9))
    assert search_placement(case, lambda: next(calls) > 400) == longer


def test_no_time_for_the_solver_leaves_the_heuristic_result() -> None:
    case = small_case(3)
    solved = solve_placement(case, (LEFT_OUT,) * len(case.queries), lambda: 0.0)
    assert (solved.assignment, solved.proven, solved.bound) == (None, False, None)


def test_the_fewest_boxes_of_a_part() -> None:
    boxes = [PlacedBox("a", 100, 1.0, most=2), PlacedBox("b", 100, 1.0, most=2), PlacedBox("c", 100, 1.0, most=2)]
    every = frozenset(range(3))

    def fewest(*queries: PlacedQuery, own: int = 1) -> int:
        weights = [{"common": 20, query.name: own} for query in queries]
        case = fleet(weights, boxes, queries)
        (part,) = [index for index, count in enumerate(case.uses.sum(0)) if count > 1]
        return fewest_boxes(case, range(len(queries)))[part]

    light = [PlacedQuery(f"q{index}", 0.1, every) for index in range(5)]
    assert fewest(*light[:2]) == 1
    assert fewest(*light) == 3  # two queries a box
    assert fewest(*light[:2], own=45) == 2  # 20 + 90 bytes do not fit on one box
    assert fewest(*(PlacedQuery(f"q{index}", 0.6, every) for index in range(2))) == 2
    assert fewest(PlacedQuery("x", 0.1, frozenset({0})), PlacedQuery("y", 0.1, frozenset({1}))) == 2

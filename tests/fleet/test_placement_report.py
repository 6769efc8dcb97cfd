"""Report of a placement: the table, JSON, and what would help a query that was left out."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from gemel.fleet import placement_report
from gemel.fleet.place_queries import Placement, place_queries
from gemel.fleet.placement_case import LEFT_OUT, PlacedBox, PlacedQuery, PlacementCase, make_case
from gemel.fleet.placement_report import Shortfall, placement_lines, placement_table, placement_to_json, shortfalls

MB = 1_000_000
BOTH = frozenset({0, 1})


def case_with(*queries: tuple[float, frozenset[int], int], most: int | None = None) -> PlacementCase:
    """Return a case of queries with a load, boxes and bytes of their own each, beside 5 MB that all share."""
    placed = [PlacedQuery(f"q{index}", load, boxes) for index, (load, boxes, _) in enumerate(queries)]
    weights = [{"common": 5 * MB, f"own {index}": size} for index, (*_, size) in enumerate(queries)]
    return make_case(placed, [PlacedBox("big", 20 * MB, 2.0, most), PlacedBox("small", 10 * MB)], weights)


def placement_of(case: PlacementCase, *assignment: int) -> Placement:
    assert case.allows(assignment)
    return Placement(assignment, False, None, 0.0, True)


def rows(table: Table) -> list[list[str]]:
    """Return the words of each line of a table as it is printed."""
    text = StringIO()
    Console(width=200, file=text).print(table)
    return [line.split() for line in text.getvalue().splitlines() if line.strip(" ─")]


def test_the_table() -> None:
    case = case_with((0.25, BOTH, MB), (0.5, BOTH, 2 * MB), (0.0, BOTH, 99 * MB))
    table = rows(placement_table(case, placement_of(case, 0, 0, LEFT_OUT)))
    assert table == [
        ["box", "queries", "MB", "of", "load", "of", "alone,", "MB", "saved"],
        ["big", "q0,", "q1", "8.00", "20.00", "0.75", "2", "13.00", "38.5%"],
        ["small", "-", "0.00", "10.00", "0.00", "1", "0.00", "-"],
        ["all", "2", "of", "3", "8.00", "30.00", "0.75", "3", "13.00", "38.5%"],
    ]


def test_a_table_without_loads() -> None:
    case = case_with((0.0, BOTH, MB))
    head, *_ = rows(placement_table(case, placement_of(case, 1)))
    assert head == ["box", "queries", "MB", "of", "alone,", "MB", "saved"]


def test_what_a_query_lacks_on_the_box_that_comes_nearest() -> None:
    case = case_with((1.0, BOTH, 12 * MB), (0.5, BOTH, 4 * MB), (0.5, BOTH, 4 * MB))
    (short,) = shortfalls(case, placement_of(case, 0, 1, LEFT_OUT))
    # The big box would hold 21 MB of 20, the small one 13 of 10.
    assert short == Shortfall("q2", "big", memory=MB, load=0.0, queries=0, alone=False)
    assert str(short) == "q2: left out; big lacks 1.00 MB of memory"


def test_with_what_it_lacks_it_fits() -> None:
    case = case_with((1.5, frozenset({0}), MB), (1.0, frozenset({0}), 15 * MB), most=1)
    placement = placement_of(case, 0, LEFT_OUT)
    (short,) = shortfalls(case, placement)
    assert str(short) == "q1: left out; big lacks 1.00 MB of memory, 0.5 of load and one query more than max_queries"
    box = case.boxes[0]
    more = replace(box, memory=box.memory + short.memory, speed=box.speed + short.load, most=2)
    assert replace(case, boxes=(more, case.boxes[1])).allows((0, 0))
    less = replace(more, memory=more.memory - 1)
    assert not replace(case, boxes=(less, case.boxes[1])).allows((0, 0))


def test_a_query_that_fits_on_no_box() -> None:
    case = case_with((0.0, frozenset({1}), 5 * MB + 100), (0.0, BOTH, MB))
    placement = place_queries(case)
    (short,) = shortfalls(case, placement)
    assert str(short) == "q0: fits on no box; an empty small lacks 100 bytes of memory"
    assert short.alone


def test_lines() -> None:
    case = case_with((0.5, BOTH, 4 * MB), (0.5, BOTH, 4 * MB), (0.5, BOTH, 4 * MB))
    known = placement_of(case, 0, 0, 0)
    lines = list(placement_lines(case, known))
    assert lines == [
        "not proven optimal, in 0.0 s; another placement may leave out less",
        "ignoring sharing: places 3 of 3 queries, in 22.00 MB",
    ]
    bounded = replace(known, bound=12 * MB + MB // 4)
    assert next(iter(placement_lines(case, bounded))) == (
        "not proven optimal, in 0.0 s; no placement takes less than 12.25 MB, so at most 27.9% less"
    )
    assert next(iter(placement_lines(case, replace(known, proven=True)))) == "proven optimal, in 0.0 s"


def test_a_solver_that_is_not_installed_is_named_where_it_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_with((0.5, BOTH, 4 * MB))
    placement = placement_of(case, 0)
    hint = "the exact solver would prove more: in a checkout of gemel, pip install '.[place]'"
    assert hint not in placement_lines(case, placement)
    monkeypatch.setattr(placement_report, "has_solver", lambda: False)
    assert hint in placement_lines(case, placement)
    assert hint not in placement_lines(case, replace(placement, proven=True))
    assert hint not in placement_lines(case, replace(placement, small=False))


def test_json() -> None:
    case = case_with((0.25, BOTH, MB), (0.5, BOTH, 2 * MB), (0.0, BOTH, 99 * MB))
    found = placement_to_json(case, replace(placement_of(case, 0, 0, LEFT_OUT), bound=8 * MB), ["gate", "yard", "yard"])
    assert found["boxes"] == {
        "big": {
            "queries": ["q0", "q1"],
            "feeds": ["gate", "yard"],
            "bytes": 8 * MB,
            "memory": 20 * MB,
            "load": 0.75,
            "speed": 2.0,
            "alone_bytes": 13 * MB,
        },
        "small": {
            "queries": [],
            "feeds": [],
            "bytes": 0,
            "memory": 10 * MB,
            "load": 0.0,
            "speed": 1.0,
            "alone_bytes": 0,
        },
    }
    assert found["left_out"] == {
        "q2": {
            "reason": "q2: fits on no box; an empty big lacks 84.00 MB of memory",
            "box": "big",
            "missing_bytes": 84 * MB,
            "missing_load": 0.0,
            "box_is_full": False,
            "fits_on_no_box": True,
        }
    }
    assert (found["bytes"], found["alone_bytes"], found["saving"]) == (8 * MB, 13 * MB, 1 - 8 / 13)
    assert found["ignoring_sharing"] == {"queries": 2, "bytes": 8 * MB}
    assert (found["proven"], found["bound_bytes"], found["gap"]) == (False, 8 * MB, 0.0)

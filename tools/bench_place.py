"""Measure how good and how fast ``gemel place`` is, and write the figures into docs/placement.md.

    .venv/bin/python tools/bench_place.py

Three tables, all of random cases. Small ones are compared with all assignments, one by one. Medium ones show how far
the heuristic is from what the exact solver proves to be the best. Large ones, 100 queries on 20 boxes, show the gap to
a lower bound, beside a first fit that ignores sharing. For one of them the exact solver looks for a higher bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from documents import write_between
from placement_cases import best_score, large_case, small_case

from gemel.fleet.exact_placement import solve_placement
from gemel.fleet.local_search import fill_first_fit
from gemel.fleet.place_queries import Placement, place_queries
from gemel.fleet.placement_case import LEFT_OUT, PlacementCase

PAGE = Path(__file__).resolve().parent.parent / "docs" / "placement.md"
_MEDIUM = (24, 5)
"""Numbers of queries and boxes of a medium case."""
_ROOMS = (0.8, 1.5)
"""Memory of all boxes in large cases, in parts of the bytes that the queries need without sharing."""


def small_table(count: int) -> Iterator[str]:
    """Yield the lines of the table of small cases."""
    equal, proven, blind, short = {"command": 0, "heuristic": 0}, 0, 0, 0
    times: list[float] = []
    for seed in range(count):
        case = small_case(seed, most_queries=7)
        best = best_score(case)
        placement, alone = place_queries(case, 60, exact=True), place_queries(case, 60, exact=False)
        equal["command"] += case.score(placement.assignment) == best
        equal["heuristic"] += case.score(alone.assignment) == best
        blind += case.score(fill_first_fit(case)) == best
        proven += placement.proven
        short += any(best[:-1])
        times.append(placement.seconds)
    yield "| cases of 2 to 7 queries on 1 to 3 boxes | of " + str(count) + " |"
    yield "|---|--:|"
    yield f"| not all queries fit | {short} |"
    yield f"| `gemel place` as good as the best of all assignments | **{equal['command']}** |"
    yield f"| proven by the solver | {proven} |"
    yield f"| `--heuristic` as good as the best | {equal['heuristic']} |"
    yield f"| first fit that ignores sharing as good as the best | {blind} |"
    yield f"| seconds, median and longest | {median(times):.2f}, {max(times):.2f} |"


def medium_table(count: int, seconds: float) -> Iterator[str]:
    """Yield the lines of the table of medium cases."""
    queries, boxes = _MEDIUM
    yield (
        f"| {queries} queries on {boxes} boxes | placed | heuristic, MB | seconds | exact, MB | seconds |"
        " heuristic is worse by |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for seed in range(count):
        case = large_case(seed, queries, boxes)
        quick, exact = place_queries(case, seconds, exact=False), place_queries(case, seconds, exact=True)
        sizes = [case.memory(each.assignment) for each in (quick, exact)]
        same = case.score(quick.assignment)[:-1] == case.score(exact.assignment)[:-1]
        worse = f"{sizes[0] / sizes[1] - 1:.1%}" if same else "more left out"
        mark = "" if exact.proven else ", not proven"
        yield (
            f"| seed {seed} | {_placed(exact)} | {sizes[0] / 1e6:.1f} | {quick.seconds:.1f}"
            f" | {sizes[1] / 1e6:.1f}{mark} | {exact.seconds:.1f} | {worse} |"
        )


def large_table(count: int, seconds: float, solver: float) -> Iterator[str]:
    """Yield the lines of the table of large cases."""
    yield ("| 100 queries on 20 boxes | placed | MB | seconds | bound, MB | gap | ignoring sharing: placed | MB |")
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    first: tuple[PlacementCase, Placement] | None = None
    for room in _ROOMS:
        for seed in range(count):
            case = large_case(seed, room=room)
            placement, blind = place_queries(case, seconds), fill_first_fit(case)
            first = first or (case, placement)
            held = case.memory(placement.assignment)
            gap = placement.gap(held)
            bound = "-" if placement.bound is None else f"{placement.bound / 1e6:.0f}"
            yield (
                f"| room {room:g}, seed {seed} | {_placed(placement)} | {held / 1e6:.0f} | {placement.seconds:.1f}"
                f" | {bound} | {'-' if gap is None else f'{gap:.1%}'}"
                f" | {sum(box != LEFT_OUT for box in blind)} | {case.memory(blind) / 1e6:.0f} |"
            )
    if first is not None:
        yield ""
        yield _solver_bound(*first, solver)


def _solver_bound(case: PlacementCase, placement: Placement, seconds: float) -> str:
    """Return a sentence about the bound that the exact solver finds in some seconds."""
    solved = solve_placement(case, placement.assignment, lambda: seconds)
    found = "none" if solved.bound is None else f"{solved.bound / 1e6:.0f} MB"
    return f"Bound of HiGHS after {seconds:g} s, room {_ROOMS[0]:g}, seed 0: {found}."


def _placed(placement: Placement) -> int:
    return sum(box != LEFT_OUT for box in placement.assignment)


def main() -> None:
    """Measure, print, and write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=200, help="small cases (default: %(default)s)")
    parser.add_argument("--medium", type=int, default=8, help="medium cases (default: %(default)s)")
    parser.add_argument("--large", type=int, default=3, help="large cases of each kind (default: %(default)s)")
    parser.add_argument("--exact", type=float, default=30.0, help="time of a medium case (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=9.0, help="time of a large case (default: %(default)s)")
    parser.add_argument("--solver", type=float, default=240.0, help="time of the solver's bound (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write into (default: docs/placement.md)")
    options = parser.parse_args()
    for name, lines in (
        ("small", small_table(options.small)),
        ("medium", medium_table(options.medium, options.exact)),
        ("large", large_table(options.large, options.seconds, options.solver)),
    ):
        table = []
        for line in lines:
            print(line, flush=True)
            table.append(line)
        write_between(options.page, f"placement-{name}", "\n".join(table))


if __name__ == "__main__":
    main()

"""Report of a placement: a table of boxes, lines about what was left out and what would help, and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ..errors import install_hint
from .exact_placement import has_solver
from .local_search import fill_first_fit
from .place_queries import Placement, fitting_boxes
from .placement_case import LEFT_OUT, PlacementCase

__all__ = ["Shortfall", "placement_lines", "placement_table", "placement_to_json", "shortfalls"]


@dataclass(frozen=True)
class Shortfall:
    """What a query that was left out lacks on the box that comes nearest to having room."""

    query: str
    box: str
    """Name of that box."""
    memory: int
    """Bytes of memory that the box lacks, beside what it holds; 0 if it has enough."""
    load: float
    """Load of a box of speed 1 that the box lacks; 0 if it has enough."""
    queries: int
    """1 if the box has as many queries as it may have, otherwise 0."""
    alone: bool
    """Whether the query would not even fit on an empty box. The missing numbers are then those of the empty box."""

    def __str__(self) -> str:
        """Return one line that says what is missing, and that this much more would be enough."""
        wants = []
        if self.memory:
            size = f"{self.memory / 1e6:.2f} MB" if self.memory >= 10_000 else f"{self.memory} bytes"
            wants.append(f"{size} of memory")
        if self.load > 0:
            wants.append(f"{self.load:.3g} of load")
        if self.queries:
            wants.append("one query more than max_queries")
        what = f"{', '.join(wants[:-1])} and {wants[-1]}" if len(wants) > 1 else wants[0] if wants else "nothing"
        why = "fits on no box" if self.alone else "left out"
        return f"{self.query}: {why}; {'an empty ' if self.alone else ''}{self.box} lacks {what}"


def shortfalls(case: PlacementCase, placement: Placement) -> list[Shortfall]:
    """Return what each query that was left out lacks, on the box where that is the least part of what the box has."""
    members = case.members(placement.assignment)
    found = []
    for index, where in enumerate(placement.assignment):
        if where != LEFT_OUT:
            continue
        alone = not fitting_boxes(case, index)
        options = []
        for box in sorted(case.queries[index].boxes):
            there, has = [*([] if alone else members[box]), index], case.boxes[box]
            memory, load = max(0, case.held(there) - has.memory), max(0.0, case.load(there) - has.speed)
            full = int(has.most is not None and len(there) > has.most)
            part = memory / has.memory + load / has.speed + full
            options.append((part, Shortfall(case.queries[index].name, has.name, memory, load, full, alone)))
        found.append(min(options, key=lambda option: option[0])[1])
    return found


def placement_table(case: PlacementCase, placement: Placement) -> Table:
    """Return a table with a row per box and a row of totals."""
    timed = any(query.load for query in case.queries)
    table = Table("box", "queries", box=SIMPLE)
    for title in ("MB", "of", *(("load", "of") if timed else ()), "alone, MB", "saved"):
        table.add_column(title, justify="right")
    members = case.members(placement.assignment)
    for box, queries in zip(case.boxes, members, strict=True):
        held, alone = case.held(queries), sum(case.alone[query] for query in queries)
        table.add_row(
            escape(box.name),
            escape(", ".join(case.queries[query].name for query in queries)) or "-",
            *_sizes(held, box.memory),
            *(_loads(case.load(queries), box.speed) if timed else ()),
            f"{alone / 1e6:.2f}",
            _saved(held, alone),
        )
    placed = [query for queries in members for query in queries]
    held, alone = case.memory(placement.assignment), sum(case.alone[query] for query in placed)
    table.add_section()
    table.add_row(
        "all",
        f"{len(placed)} of {len(case.queries)}",
        *_sizes(held, sum(box.memory for box in case.boxes)),
        *(_loads(case.load(placed), sum(box.speed for box in case.boxes)) if timed else ()),
        f"{alone / 1e6:.2f}",
        _saved(held, alone),
    )
    return table


def placement_lines(case: PlacementCase, placement: Placement) -> Iterator[str]:
    """Yield lines about how good the placement is, what one that ignores sharing would take, and what was left out."""
    held = case.memory(placement.assignment)
    gap = placement.gap(held)
    if placement.proven:
        yield f"proven optimal, in {placement.seconds:.1f} s"
    elif gap is not None and placement.bound is not None:
        yield (
            f"not proven optimal, in {placement.seconds:.1f} s; no placement takes less than"
            f" {placement.bound / 1e6:.2f} MB, so at most {gap:.1%} less"
        )
    else:
        yield f"not proven optimal, in {placement.seconds:.1f} s; another placement may leave out less"
    if placement.small and not placement.proven and not has_solver():
        yield f"the exact solver would prove more: {install_hint('place')}"
    blind = fill_first_fit(case)
    count = sum(box != LEFT_OUT for box in blind)
    yield f"ignoring sharing: places {count} of {len(blind)} queries, in {case.memory(blind) / 1e6:.2f} MB"
    for shortfall in shortfalls(case, placement):
        yield str(shortfall)


def placement_to_json(case: PlacementCase, placement: Placement, feeds: Sequence[str]) -> dict[str, Any]:
    """Return a placement as a value that JSON can hold.

    Args:
        case: queries and boxes.
        placement: where the queries are.
        feeds: feed of each query, in the order of the case.
    """
    members = case.members(placement.assignment)
    held, blind = case.memory(placement.assignment), fill_first_fit(case)
    alone = sum(case.alone[query] for queries in members for query in queries)
    return {
        "schema_version": "1",
        "boxes": {
            box.name: {
                "queries": [case.queries[query].name for query in queries],
                "feeds": sorted({feeds[query] for query in queries}),
                "bytes": case.held(queries),
                "memory": box.memory,
                "load": round(case.load(queries), 6),
                "speed": box.speed,
                "alone_bytes": sum(case.alone[query] for query in queries),
            }
            for box, queries in zip(case.boxes, members, strict=True)
        },
        "left_out": {
            each.query: {
                "reason": str(each),
                "box": each.box,
                "missing_bytes": each.memory,
                "missing_load": round(each.load, 6),
                "box_is_full": bool(each.queries),
                "fits_on_no_box": each.alone,
            }
            for each in shortfalls(case, placement)
        },
        "bytes": held,
        "alone_bytes": alone,
        "saving": 1 - held / alone if alone else 0.0,
        "ignoring_sharing": {"queries": sum(box != LEFT_OUT for box in blind), "bytes": case.memory(blind)},
        "proven": placement.proven,
        "bound_bytes": placement.bound,
        "gap": placement.gap(held),
        "seconds": round(placement.seconds, 3),
    }


def _sizes(held: int, memory: int) -> tuple[str, str]:
    return f"{held / 1e6:.2f}", f"{memory / 1e6:.2f}"


def _loads(load: float, speed: float) -> tuple[str, str]:
    return f"{load:.2f}", f"{speed:g}"


def _saved(held: int, alone: int) -> str:
    """Return by which percentage fewer bytes are held than the queries have alone."""
    return f"{1 - held / alone:.1%}" if alone else "-"

"""Keep the structure: which room may import which, and how files, names and docstrings are made."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A room imports only from rooms further to the left, and from itself. Modules at the root, such as errors.py, are free.
ROOMS = ("bundles", "frames", "workload", "runtime", "compiler", "merging", "calib", "check", "fleet", "cli")
# workload describes, runtime runs: neither may know the other, nor what compiles and merges.
STRANGERS = {("runtime", "workload"), ("workload", "runtime"), ("compiler", "runtime")}
ORDERS = {
    "runtime": (
        "timing", "trace", "device_cache", "device", "decode", "feeds", "planning", "memory", "ort", "ov",
        "engines", "backends", "sinks", "loop", "service", "run",
    ),
    "merging": (
        "models", "layers", "forms", "analysis", "tasks", "judging", "training", "strategies", "search", "output",
        "merge",
    ),
    "compiler": ("recognition", "heads", "passes", "lowering", "writing", "stems", "compile", "drafting"),
    "workload": ("document", "zoo", "models", "data"),
    "check": ("contents", "bench", "source", "regression", "evaluation", "drift"),
}  # fmt: skip
MOST_LINES = 300
MOST_LOOSE = 4


def modules() -> list[Path]:
    """Every module of the product, relative to the root."""
    return [path.relative_to(ROOT) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(module: Path) -> Iterator[tuple[str, ...]]:
    """Parts of the module names that a file imports from this package, without the package's own name."""
    package = module.parent.parts
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            named = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield (*named, alias.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gemel":
            yield tuple((node.module or "").split(".")[1:])


def arrows(place: int, room: str = "") -> set[tuple[str, str, str]]:
    """(from, to, file) between rooms, or between the parts of one room."""
    found = set()
    for module in modules():
        if room and module.parts[0] != room:
            continue
        here = module.parts[place].removesuffix(".py")
        for target in imports(module):
            inside = len(target) > place and (not room or target[0] == room)
            if inside and target[place] != here and here != "__init__":
                found.add((here, target[place], str(module)))
    return found


def test_no_arrow_points_back_up_between_rooms() -> None:
    wrong = [
        arrow
        for arrow in arrows(0)
        if arrow[1] in ROOMS and (ROOMS.index(arrow[0]) < ROOMS.index(arrow[1]) or arrow[:2] in STRANGERS)
    ]
    assert not wrong


@pytest.mark.parametrize("room", ORDERS)
def test_no_arrow_points_back_up_inside_a_room(room: str) -> None:
    order = ORDERS[room]
    parts = {path.name.removesuffix(".py") for path in (ROOT / room).iterdir() if path.name[0] not in "_."}
    assert parts - {"py.typed"} == set(order)
    found = arrows(1, room)
    assert not [arrow for arrow in found if arrow[1] in order and order.index(arrow[0]) < order.index(arrow[1])]


def test_the_runtime_has_few_loose_modules() -> None:
    assert len([path for path in (ROOT / "runtime").glob("*.py") if path.name != "__init__.py"]) <= MOST_LOOSE


def test_a_file_can_be_read_in_one_sitting() -> None:
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in modules()}
    assert not {path: lines for path, lines in lengths.items() if lines > MOST_LINES}


def test_file_names_occur_once_in_a_room() -> None:
    places = defaultdict(list)
    for path in modules():
        if path.name != "__init__.py":
            places[path.parts[0], path.name].append(str(path))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_public_names_occur_once() -> None:
    places = defaultdict(set)
    for path in modules():
        for node in ast.parse((ROOT / path).read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                places[node.name].add(str(path))
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if isinstance(target, ast.Name):
                    places[target.id].add(str(path))
    assert not {name: paths for name, paths in places.items() if name[0] != "_" and len(paths) > 1}

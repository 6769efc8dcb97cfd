"""Tests of the table that tools/install_size.py prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import install_size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def test_table_names_who_needs_a_distribution_and_adds_up() -> None:
    listed = [
        ["Numpy", "2.0", 57_000_000, []],
        ["rich", "15.0", 1_200_000, ["pygments<3,>=2.13", 'ipywidgets>=7; extra == "jupyter"']],
        ["Pygments", "2.21", 4_600_000, []],
        ["typing_extensions", "4.16", 200_000, []],
    ]
    lines = install_size.table(install_size.parse(json.dumps(listed)), {"numpy": "arrays", "rich": "tables"}).split(
        "\n"
    )
    assert lines[2:] == [
        "| numpy 2.0 | 57.0 | arrays |",
        "| pygments 2.21 | 4.6 | needed by rich |",
        "| rich 15.0 | 1.2 | tables |",
        "| 1 others | 0.2 | typing-extensions |",
        "| **together** | **63** | |",
    ]


def test_every_dependency_has_a_purpose() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {install_size.requirement_name(each) for each in wanted}
    assert {*names, "gemel"} == install_size.PURPOSES.keys()

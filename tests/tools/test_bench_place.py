"""Benchmark of placements on few and small cases: the tables that it writes into a page."""

from __future__ import annotations

import sys
from pathlib import Path

import bench_place
import pytest


def test_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- placement-small -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(bench_place, "_MEDIUM", (6, 2))
    few = ("--small", "3", "--medium", "1", "--large", "1", "--seconds", "0.2", "--solver", "0.2")
    monkeypatch.setattr(sys, "argv", ["bench_place.py", *few, "--page", str(page)])
    bench_place.main()
    text = page.read_text()
    assert "old" not in text
    assert "| `gemel place` as good as the best of all assignments | **3** |" in text
    assert [line.count("|") for line in text.splitlines() if line.startswith("| room ")] == [9, 9]
    (medium,) = [line for line in text.splitlines() if line.startswith("| seed 0 ")]
    assert medium.count("|") == 8
    assert "\nBound of HiGHS after 0.2 s, room 0.8, seed 0: " in text
    assert set(capsys.readouterr().out.splitlines()) <= set(text.splitlines())

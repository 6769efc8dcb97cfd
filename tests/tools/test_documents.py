"""Tests of tools/documents.py: rows and cells that were not measured anew stay in a document's table."""

from __future__ import annotations

from documents import joined_rows

PAGE = """words
<!-- models -->
ONNX 1

| model | time | int8 |
|---|--:|---|
| a | 1.0 | - |
| b | 2.0 | 99% |
| c | 3.0 | 98% |
<!-- end -->
"""
NEW = """ONNX 2

| model | time | int8 |
|---|--:|---|
| b | - | 97% |
| d | 4.0 | - |"""


def test_rows_and_cells_that_were_not_measured_are_kept() -> None:
    assert joined_rows(PAGE, "models", NEW).splitlines() == [
        "ONNX 2",
        "",
        "| model | time | int8 |",
        "|---|--:|---|",
        "| a | 1.0 | - |",
        "| b | 2.0 | 97% |",
        "| c | 3.0 | 98% |",
        "| d | 4.0 | - |",
    ]


def test_a_page_without_the_table_gets_the_new_one() -> None:
    assert joined_rows("words", "models", NEW) == NEW


def test_rows_of_a_table_whose_keys_are_two_cells() -> None:
    page = "<!-- runs -->\n| a | b | n |\n|---|---|--:|\n| w1 | x | 1 |\n| w1 | y | 2 |\n<!-- end -->\n"
    new = "| a | b | n |\n|---|---|--:|\n| w1 | y | - |\n| w2 | x | 4 |"
    rows = joined_rows(page, "runs", new, None, keys=2).splitlines()[2:]
    assert rows == ["| w1 | x | 1 |", "| w1 | y | - |", "| w2 | x | 4 |"]

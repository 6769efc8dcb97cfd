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

"""Replacement of tables that tools make in documents, between ``<!-- name -->`` and the next ``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["joined_rows", "put", "write_between"]

_END = "<!-- end -->"


def put(text: str, blocks: Mapping[str, str]) -> str:
    """Return a document's text with the content of each named block replaced.

    Raises:
        ValueError: the text does not have exactly one block of a given name.
    """
    for name, content in blocks.items():
        begin = f"<!-- {name} -->\n"
        parts = re.split(rf"{begin}.*?{_END}", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"the page has {len(parts) - 1} places for {name!r}, not one")
        text = f"{begin}{content}\n{_END}".join(parts)
    return text


def joined_rows(text: str, name: str, table: str, unmeasured: str = "-") -> str:
    """Return a table with what a document's table has beyond it, so that a part of a table can be measured alone.

    Rows are told apart by their first cell. A row that only the document has stays where it is; a cell that is
    ``unmeasured`` in a new row keeps what the document has there.

    Args:
        text: text of the document.
        name: name of the block in which the document has its table.
        table: new table in Markdown, with the same columns; lines before its first row are taken as they are.
        unmeasured: content of a cell that was not measured.
    """
    block = re.search(rf"<!-- {name} -->\n(.*?)\n?{_END}", text, flags=re.DOTALL)
    _, kept = _head_and_rows(block[1] if block else "")
    head, rows = _head_and_rows(table)
    for key, cells in rows.items():
        earlier = kept.get(key, cells)
        kept[key] = [old if new == unmeasured else new for old, new in zip(earlier, cells, strict=True)]
    return "\n".join([*head, *(f"| {' | '.join(cells)} |" for cells in kept.values())])


def _head_and_rows(table: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the lines up to a table's ruler, and the cells of each row by the first of them."""
    lines = table.splitlines()
    head = next((index + 1 for index, line in enumerate(lines) if re.fullmatch(r"[|:-]+", line)), len(lines))
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[head:])
    return lines[:head], {cells[0]: cells for cells in rows}


def write_between(path: Path, name: str, content: str) -> None:
    """Replace the content of a named block in a document; a block that the document does not have is appended."""
    text = path.read_text() if path.exists() else ""
    if f"<!-- {name} -->" not in text:
        text += f"\n<!-- {name} -->\n{_END}\n"
    path.write_text(put(text, {name: content}))

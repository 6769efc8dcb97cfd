"""Replacement of tables that tools make in documents, between ``<!-- name -->`` and the next ``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["put", "write_between"]

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


def write_between(path: Path, name: str, content: str) -> None:
    """Replace the content of a named block in a document; a block that the document does not have is appended."""
    text = path.read_text() if path.exists() else ""
    if f"<!-- {name} -->" not in text:
        text += f"\n<!-- {name} -->\n{_END}\n"
    path.write_text(put(text, {name: content}))

"""Tables that commands write into documents."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_between"]


def write_between(path: Path, name: str, content: str) -> None:
    """Replace what stands between ``<!-- name -->`` and the next ``<!-- end -->`` of a document; add it if missing."""
    begin, end = f"<!-- {name} -->\n", "<!-- end -->\n"
    text = path.read_text() if path.exists() else ""
    if begin not in text:
        text += f"\n{begin}{end}"
    head, rest = text.split(begin)
    path.write_text(f"{head}{begin}{content}\n{end}{rest.split(end, 1)[1]}")

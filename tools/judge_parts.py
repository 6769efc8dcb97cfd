"""Join the parts of a data set that no original model was trained on into one, by which merges are judged."""

from __future__ import annotations

from pathlib import Path

from whole_folder import whole_folder

__all__ = ["judge_parts"]


def judge_parts(folder: Path) -> Path:
    """Return the folder ``judge`` beside ``val`` and ``test``, with links to the images of first one, then the other.

    A merge chooses by one half of it and confirms by the other. Images may be in folders by class.

    Args:
        folder: folder with ``val`` and ``test``; a folder ``judge`` that exists is kept as it is.
    """
    target = folder / "judge"
    if not target.exists():
        with whole_folder(target) as work:
            for order, part in enumerate(("val", "test")):
                for picture in sorted(path for path in (folder / part).rglob("*") if path.is_file()):
                    place = work / picture.parent.relative_to(folder / part)
                    place.mkdir(parents=True, exist_ok=True)
                    (place / f"{order}-{picture.name}").symlink_to(picture.resolve())
    return target

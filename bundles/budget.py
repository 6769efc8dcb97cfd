"""The memory setting: as a user writes it, and as bytes for a bundle."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import InputError

__all__ = ["budget", "parse_memory"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_memory(text: str | int) -> str | int:
    """``64MiB`` to bytes, which digits alone are; ``all``, ``min`` and shares such as ``50%`` stay words.

    >>> parse_memory("64MiB"), parse_memory("50 %"), parse_memory("all")
    (67108864, '50%', 'all')

    Raises:
        ValueError: anything else.
    """
    if isinstance(text, int):
        if text < 0:
            raise ValueError("at least 0 bytes are expected")
        return text
    if text in ("all", "min"):
        return text
    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if share and 0 < float(share[1]) <= 100:
        return f"{float(share[1]):g}%"
    size = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*((?:[KMG]i?)?B)\s*|\s*(\d{1,18})\s*", text, re.IGNORECASE)
    if not size:
        raise ValueError("bytes such as 64MiB, a share such as 50%, 'min' or 'all' are expected")
    return int(size[3]) if size[3] else int(float(size[1]) * _UNITS[size[2].upper()])


def budget(setting: str | int, total: int, models: Collection[int], private: int = 0) -> int:
    """Bytes that a setting allows.

    Args:
        setting: as :func:`parse_memory` returns it.
        total: bytes of all segments.
        models: bytes of each model's segments; ``min`` is the largest of them.
        private: bytes beside the segments that stay loaded whatever runs; part of every setting.

    Raises:
        InputError: less than the hungriest model needs, with that minimum.
    """
    least = max(models, default=0) + private
    if setting == "all":
        allowed = total + private
    elif setting == "min":
        allowed = least
    elif isinstance(setting, str):
        allowed = int((total + private) * float(setting.rstrip("%")) / 100)
    else:
        allowed = setting
    if allowed < least:
        needs = f"the hungriest model alone needs {least} bytes"
        if private:
            needs = f"{least} bytes are needed, of which {private} stay loaded (copies that are not shared)"
        raise InputError(f"memory: {setting} is {allowed} bytes; {needs}")
    return allowed

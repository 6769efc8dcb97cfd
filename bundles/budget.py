"""Memory settings that users write: parser, and calculation of the bytes that a setting allows for weights."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import InputError

__all__ = ["budget", "parse_memory"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_memory(text: str | int) -> str | int:
    """Parse a memory setting: convert ``64MiB`` and plain digits to bytes; keep ``all``, ``min`` and ``50%`` as text.

    >>> parse_memory("64MiB"), parse_memory("50 %"), parse_memory("all")
    (67108864, '50%', 'all')

    Raises:
        ValueError: ``text`` is no valid memory setting.
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
    """Return the bytes that a memory setting allows for weights.

    Args:
        setting: memory setting from :func:`parse_memory`.
        total: bytes of all segments of the bundle.
        models: bytes of the segments of each model; the largest number is what ``min`` allows.
        private: bytes of private copies of weights, which always stay loaded; ``all``, ``min`` and percentages include
            these bytes.

    Raises:
        InputError: the setting allows less than the largest model needs; the message names this minimum.
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
        needs = f"the largest model alone needs {least} bytes"
        if private:
            needs = f"{least} bytes are needed, of which {private} stay loaded (copies that are not shared)"
        raise InputError(f"memory: {setting} is {allowed} bytes; {needs}")
    return allowed

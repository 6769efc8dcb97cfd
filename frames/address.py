"""Addresses of cameras for messages: scheme, host and port only, because the rest may hold a password."""

from __future__ import annotations

import re

from ..bundles.addresses import shown_server

__all__ = ["hide_addresses", "shown_address"]


def shown_address(location: str) -> str:
    """Return a source as messages show it: a path as it is, an address as its scheme, host and port.

    User, password, path and query of an address are left out: cameras take passwords in all of them.

    >>> shown_address("rtsp://admin:p@ss@192.0.2.7:554/live?pwd=x"), shown_address("yard.mp4")
    ('rtsp://192.0.2.7:554', 'yard.mp4')
    """
    if "://" in location:
        return shown_server(location)
    # File names need not be UTF-8, and bytes that are not UTF-8 cannot be printed.
    location = location.encode("utf-8", "backslashreplace").decode()
    # An address whose scheme was forgotten looks like a path.
    return f"...@{location.rpartition('@')[2]}" if re.match(r"[^/]*:[^/]*@", location) else location


def hide_addresses(text: str) -> str:
    """Return a message in which every address is shown as its scheme, host and port.

    >>> hide_addresses("'rtsp://me:pw@camera/live' is not allowed; did you mean {source: rtsp://me:pw@camera/live}?")
    "'rtsp://camera' is not allowed; did you mean {source: rtsp://camera}?"
    """

    def shown(match: re.Match[str]) -> str:
        """Return the shown form (no secrets) of an address that was found in a message, with the punctuation that
        follows the address."""
        address = match[0].rstrip("]}),;:?.")
        return shown_server(address) + match[0][len(address) :]

    return re.sub(r"[A-Za-z][\w+.-]*://[^\s'\"]*", shown, text)

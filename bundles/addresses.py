"""Addresses of servers that outputs send results to: their parts, and the form in which they may be printed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from ..errors import first_line

__all__ = ["Address", "parse_address", "shown_reason", "shown_server"]

_PRINTABLE = re.compile(r"([a-zA-Z][\w+.-]*://)(?:[^/?#]*@)?((?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d+)?)(?:[/?#][^@]*)?")
_URL = re.compile(r"[a-zA-Z][\w+.-]*://[^\s\"'<>]*[^\s\"'<>.,;:)]")
_HOST = re.compile(r"[\w.-]{1,253}|[0-9a-fA-F:.]{2,45}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """Parts of the URL of a server that results are sent to."""

    scheme: str
    host: str
    """Host name or IP address in a server's URL, without the brackets of an IPv6 address."""
    port: int
    target: str
    """Path and query of a server's URL; at least ``/``."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def shown_server(url: str) -> str:
    """Return scheme, host and port of a URL, which is all that may be printed: the rest may hold a password.

    >>> shown_server("mqtt://box:s3cret@broker:1883/x?key=1"), shown_server("mqtt://box:s3/cret@broker")
    ('mqtt://broker:1883', 'mqtt://...')
    """
    if match := _PRINTABLE.fullmatch(url.strip()):
        return match[1] + match[2]
    # The end of the password cannot be told from the beginning of the host.
    scheme, separator, _ = url.partition("://")
    return f"{scheme}://..." if separator and re.fullmatch(r"[A-Za-z][\w+.-]*", scheme) else "..."


def shown_reason(error: BaseException) -> str:
    """Return the first line of an error's message, with scheme, host and port of each URL in it only.

    >>> shown_reason(OSError('no connection to "http://key:s3cret@store:9000/bucket?signature=1"'))
    'no connection to "http://store:9000"'
    """
    return _URL.sub(lambda match: shown_server(match[0]), first_line(error))


def parse_address(url: str, ports: dict[str, int]) -> Address:
    """Split a server's URL into its parts.

    Args:
        url: URL with a host, and perhaps user name, password, port, path and query. Special characters of user name
            and password are percent-encoded.
        ports: allowed scheme -> port where the URL names none.

    Raises:
        ValueError: the URL has another scheme, or no valid host or port. The message does not repeat the URL.
    """
    allowed = " or ".join(f"{scheme}://HOST" for scheme in ports)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"{allowed} is expected, with a port from 1 to 65535") from error
    if parts.scheme not in ports:
        raise ValueError(f"{allowed} is expected")
    if not _HOST.fullmatch(host) or port == 0 or re.search(r"[\s\x00-\x1f]", url):
        raise ValueError(f"{allowed} is expected, with the name or IP address of a server")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    username = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return Address(parts.scheme, host, port or ports[parts.scheme], target, username, password)

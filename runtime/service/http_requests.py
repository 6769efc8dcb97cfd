"""Answers to HTTP requests about a running bundle: metrics, health, status, the live page, pictures, and control."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from threading import BoundedSemaphore
from time import sleep
from typing import Any, ClassVar, Protocol
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from ...errors import GemelError, InputError
from .latest_frames import LatestFrames
from .metrics import RunMetrics
from .status import RunStatus

__all__ = ["Control", "RequestHandler", "is_loopback"]

_log = logging.getLogger(__name__)

_MOST_BODY = 64 << 10
"""Maximum size in bytes of the body of an HTTP request; a larger one is refused."""
_MOST_STREAMS = 16
"""Maximum number of live video streams that clients may have open at once."""
_TIMEOUT_S = 10.0
"""Maximum seconds that a client may take to send an HTTP request or to accept an answer."""
_PICTURE_EVERY_S = 0.1
"""Minimum seconds between two pictures of a live stream, as drawing and encoding them takes CPU time from models."""
_PICTURE_WAIT_S = 5.0
"""Seconds after which an unchanged picture is sent again in a live stream, to notice that a client has left."""
_OPEN = frozenset({"/healthz", "/readyz"})
"""URL paths that need no token: a container's health checks ask there, and the answer is one word."""
_NUMBER = re.compile("[0-9]{1,9}")
"""Pattern of the value of a Content-Length header."""
_MOST_PATH = 4096
"""Maximum number of characters of a bundle's path in a reload request."""
_BOUNDARY = "gemelframe"
_POLICY = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content-Security-Policy of all HTTP answers: the live page loads nothing from other servers."""


class Control(Protocol):
    """Changes to a running bundle that requests may ask for. Every method may be called on any thread."""

    def reload(self, bundle: str | None) -> Mapping[str, Any]:
        """Replace the running bundle by another one (None: read it again from disk), and return what was changed."""
        ...

    def pause(self, kind: str, name: str, paused: bool) -> Mapping[str, Any]:
        """Pause or resume a query or feed (``kind`` is ``queries`` or ``feeds``); return what was changed."""
        ...


class RequestHandler(BaseHTTPRequestHandler):
    """Handler of the HTTP requests of one connection; :class:`.server.StatusServer` sets the class variables."""

    status: ClassVar[RunStatus]
    metrics: ClassVar[RunMetrics]
    frames: ClassVar[LatestFrames]
    control: ClassVar[Control | None]
    token: ClassVar[str | None]
    host: ClassVar[str]
    streams: ClassVar[BoundedSemaphore] = BoundedSemaphore(_MOST_STREAMS)
    timeout = _TIMEOUT_S
    protocol_version = "HTTP/1.1"
    server_version = "gemel"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer an HTTP request for the live page, metrics, status or a picture of a feed."""
        if not self._is_allowed(from_page=True):
            return
        path = _split(self.path).path
        pages: dict[str, Callable[[], None]] = {
            "/": self._page,
            "/metrics": lambda: self._send(HTTPStatus.OK, self.metrics.text(), "text/plain; version=0.0.4"),
            "/status": lambda: self._json(HTTPStatus.OK, self.status.to_json()),
            "/healthz": lambda: self._verdict(self.status.healthy, "the runner gives no sign of life"),
            "/readyz": lambda: self._verdict(self.status.ready, "models are being prepared"),
        }
        if path in pages:
            pages[path]()
        elif path.startswith("/feeds/") and path.endswith((".jpg", ".mjpeg")):
            name, _, kind = unquote(path.removeprefix("/feeds/")).rpartition(".")
            (self._picture if kind == "jpg" else self._stream)(name)
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": f"{path} does not exist; {', '.join(pages)} do"})

    def do_POST(self) -> None:
        """Answer an HTTP request to change the running bundle: reload it, or pause or resume a query or feed."""
        if not self._is_allowed(from_page=False):
            return
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            # An unread body would be taken for no body, which asks for another change.
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "a body needs a Content-Length, and no Transfer-Encoding")
            return
        if not _NUMBER.fullmatch(length) or int(length) > _MOST_BODY:
            self.close_connection = True
            self._json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"a body has at most {_MOST_BODY} bytes"})
            return
        body = self.rfile.read(int(length))
        if self.control is None:
            self._json(HTTPStatus.NOT_IMPLEMENTED, {"error": "this run cannot be changed"})
            return
        try:
            self._json(HTTPStatus.OK, self._change(self.control, _split(self.path).path, body))
        except LookupError as error:
            self._json(HTTPStatus.NOT_FOUND, {"error": str(error.args[0])})
        except GemelError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})

    def _change(self, control: Control, path: str, body: bytes) -> Mapping[str, Any]:
        """Make the change to the running bundle that an HTTP request asks for, and return what was changed.

        Raises:
            LookupError: the request's path names no change, query or feed.
            GemelError: the request is wrong, or the change is not possible.
        """
        if path == "/reload":
            return control.reload(_wanted_bundle(body))
        match path.strip("/").split("/"):
            case [("queries" | "feeds") as kind, name, ("pause" | "resume") as verb]:
                return control.pause(kind, unquote(name), verb == "pause")
        raise LookupError(f"{path} does not exist; /reload, /queries/NAME/pause and /feeds/NAME/pause do")

    def _is_allowed(self, *, from_page: bool) -> bool:
        """Return whether an HTTP request has the token and comes from an allowed page; otherwise answer an error."""
        host = _split(f"//{self.headers.get('Host', '')}").hostname or ""
        # A page elsewhere may point a name of its own at this machine: such a request names a host that is not here.
        if is_loopback(self.host) and not is_loopback(host):
            self._refuse(HTTPStatus.FORBIDDEN, "the Host header must name this machine, such as localhost")
            return False
        origin = self.headers.get("Origin")
        if not from_page and origin is not None and _split(origin).netloc != self.headers.get("Host"):
            self._refuse(HTTPStatus.FORBIDDEN, "changes from another page are refused")
            return False
        if self.token is None or (from_page and _split(self.path).path in _OPEN):
            return True
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if from_page and not given:
            given = parse_qs(_split(self.path).query).get("token", [""])[0]
        if hmac.compare_digest(given.encode(), self.token.encode()):
            return True
        self._refuse(HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer TOKEN")
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        # The body was not read, so the connection cannot take another request.
        self.close_connection = True
        self._json(status, {"error": reason})

    def _verdict(self, good: bool, reason: str) -> None:
        if good:
            self._json(HTTPStatus.OK, {"status": "ok"})
        else:
            self._json(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "failing", "reason": reason})

    def _page(self) -> None:
        page = files(__package__).joinpath("page.html").read_bytes()
        self._send(HTTPStatus.OK, page, "text/html; charset=utf-8")

    def _picture(self, feed: str) -> None:
        found = self.frames.picture(feed)
        if found is None:
            self._json(HTTPStatus.NOT_FOUND, {"error": f"feed {feed!r} has no frame yet"})
        else:
            self._send(HTTPStatus.OK, found[1], "image/jpeg")

    def _stream(self, feed: str) -> None:
        """Send each new picture of a feed as a part of one endless HTTP answer (MJPEG)."""
        if not self.frames.has(feed):
            self._json(HTTPStatus.NOT_FOUND, {"error": f"no query has the feed {feed!r}"})
            return
        if not self.streams.acquire(blocking=False):
            self._json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": f"{_MOST_STREAMS} live pictures are open already"})
            return
        try:
            self.close_connection = True
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            number = -1
            while self.command != "HEAD" and not self.frames.closed and self.frames.has(feed):
                found = self.frames.picture(feed, number, _PICTURE_WAIT_S) or self.frames.picture(feed)
                if found is None:
                    # Clients skip a line break before the first picture. Sending it fails once the client has left.
                    self.wfile.write(b"\r\n")
                    continue
                number, picture = found
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n")
                sleep(_PICTURE_EVERY_S)
        except OSError:  # the client has left
            pass
        finally:
            self.streams.release()

    def _json(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        self._send(status, (json.dumps(content) + "\n").encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _POLICY)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        # The query may hold the token, and a client chooses every character of the line.
        line = re.sub(r"\?\S*", "?...", format % args)
        _log.debug("%s", "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line))


def _wanted_bundle(body: bytes) -> str | None:
    """Return the bundle that the body of a reload request names; None for the running bundle.

    Raises:
        InputError: the body is not a JSON object with only the key ``bundle``.
    """
    if not body.strip():
        return None
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError("the body is not JSON") from error
    if not isinstance(content, dict) or not set(content) <= {"bundle"}:
        raise InputError('the body may have "bundle": the folder of a bundle, and nothing else')
    bundle = content.get("bundle")
    if bundle is not None and (not isinstance(bundle, str) or not _is_path(bundle)):
        raise InputError("bundle: the folder of a bundle is expected")
    return bundle


def _is_path(text: str) -> bool:
    """Return whether a text may be the path of a file or folder on this machine."""
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return 0 < len(encoded) <= _MOST_PATH and b"\0" not in encoded


def _split(url: str) -> SplitResult:
    """Return the parts of a URL that a client sent; empty parts if the text is no URL."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""Writer that sends results in batches to a web server."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from threading import Timer

from ...bundles.addresses import parse_address
from ...bundles.output_specs import WEB_PORTS, WebhookSpec
from ...errors import first_line
from ...version import find_version
from .events import SinkEvent, event_lines
from .run_info import RunInfo
from .writer import RefusedError, Writer

__all__ = ["WebhookWriter"]

_KNOWN = frozenset(HTTPStatus)
_LATER = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
"""HTTP status codes below 500 after which the same request may succeed later."""
_MOST_ANSWER = 1 << 16
"""Maximum number of bytes of an HTTP answer that are read."""


class WebhookWriter(Writer):
    """Writer of HTTP POST requests with a JSON object: ``schema``, ``run``, and ``results``, a list of lines.

    Each item of ``results`` has the content of a line of results.jsonl; of raw outputs with many values, only the shape
    is sent. A request that is not answered in time or is answered with a status from 500 is repeated, so a server may
    get a result twice. Other answers than success are final. Redirections are not followed.

    Args:
        spec: address of the server, size of a batch, timeouts and headers.
        info: identification of the run.

    Raises:
        ValueError: the address is not allowed.
        OSError: the file of certificates cannot be read.
    """

    longest_pause = 30.0

    def __init__(self, spec: WebhookSpec, info: RunInfo) -> None:
        self.batch, self.linger = spec.batch, spec.every
        self._address = address = parse_address(spec.url, WEB_PORTS)
        self._timeout = spec.timeout
        self._tls = ssl.create_default_context(cafile=spec.ca) if address.scheme == "https" else None
        head = {"schema": info.schema, "run": info.run}
        self._head = json.dumps(head).removesuffix("}").encode() + b', "results": ['
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": f"gemel/{find_version()}",
            **spec.headers,
        }
        if address.username is not None:
            pair = f"{address.username}:{address.password or ''}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        self._connection: http.client.HTTPConnection | None = None

    def write(self, batch: deque[SinkEvent]) -> None:
        lines = event_lines(batch)
        status = self._post(self._head + b", ".join(line.rstrip(b"\n") for line in lines) + b"]}\n")
        if not 200 <= status < 300:
            phrase = HTTPStatus(status).phrase if status in _KNOWN else "?"
            reason = f"HTTP {status} {phrase}"
            if status >= 500 or status in _LATER:
                raise ConnectionError(reason)
            raise RefusedError(f"{reason}; redirections are not followed" if 300 <= status < 400 else reason)
        for _ in lines:
            batch.popleft()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _post(self, body: bytes) -> int:
        """Send an HTTP request, and return the status of the answer.

        Raises:
            OSError: the server cannot be reached, or does not answer in time.
        """
        used_before = self._connection is not None and self._connection.sock is not None
        try:
            return self._try(body)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            if not used_before:
                raise
            # Servers close connections that were idle: a new one may work.
            return self._try(body)

    def _try(self, body: bytes) -> int:
        connection = self._connection = self._connection or self._connect()
        done = False
        try:
            with self._deadline(connection):
                connection.request("POST", self._address.target, body, self._headers)
                answer = connection.getresponse()
                answer.read(_MOST_ANSWER)
                done = answer.isclosed()
                return answer.status
        except http.client.HTTPException as error:
            if isinstance(error, OSError):
                raise
            raise ConnectionError(f"no HTTP answer: {type(error).__name__} {first_line(error)[:100]}") from error
        except TimeoutError as error:
            raise TimeoutError(f"no answer in {self._timeout:g} s") from error
        finally:
            if not done:
                connection.close()
                self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._address.host, self._address.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=self._timeout)

    @contextmanager
    def _deadline(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        """Limit the time of an HTTP request as a whole: a socket's own timeout starts again with every byte read."""
        late = False

        def shut() -> None:
            nonlocal late
            late = True
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

        timer = Timer(self._timeout, shut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            if late:
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()

"""HTTP server that shows the metrics, status and pictures of a running bundle, and takes changes to it."""

from __future__ import annotations

import errno
import logging
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Thread
from typing import Any

from ...errors import InputError
from .http_requests import Control, RequestHandler, is_loopback
from .latest_frames import LatestFrames
from .metrics import RunMetrics
from .status import RunStatus

__all__ = ["PortTakenError", "StatusServer"]

_log = logging.getLogger(__name__)

_MOST_CONNECTIONS = 128
"""Maximum number of open connections. Further ones are closed at once, so that descriptors are left for cameras."""


class PortTakenError(InputError):
    """Error of a port on which another program listens; that program may end later."""


class StatusServer:
    """HTTP server of a running bundle, on threads of its own. Requests and the runner never wait for each other.

    Args:
        status: source of the run's figures.
        metrics: metrics of the run.
        frames: newest frames of the run.
        control: object that makes the changes that requests ask for; such requests are refused if None.
        host: address to listen on.
        port: TCP port; 0 for any free one.
        token: secret that a request must have as ``Authorization: Bearer TOKEN``, or as ``?token=`` for pages and
            pictures; not needed if None.

    Raises:
        PortTakenError: another program listens on the port.
        InputError: the address is not allowed, or other machines could connect and there is no token.
    """

    def __init__(
        self,
        status: RunStatus,
        metrics: RunMetrics,
        frames: LatestFrames,
        control: Control | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
    ) -> None:
        if not is_loopback(host) and not token:
            raise InputError(f"--metrics-host {host}: other machines can connect there, so a token is needed")
        handler = type(
            "BoundHandler",
            (RequestHandler,),
            {"status": status, "metrics": metrics, "frames": frames, "control": control, "token": token, "host": host},
        )
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            kind = PortTakenError if error.errno == errno.EADDRINUSE else InputError
            raise kind(f"--metrics-port {port}: cannot listen on {host}: {error.strerror}") from error
        self._thread = Thread(target=self._server.serve_forever, name="gemel-http", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """URL of the server, with the port that it listens on."""
        host, port = self._server.server_address[:2]
        name = host.decode() if isinstance(host, bytes) else str(host)
        return f"http://{f'[{name}]' if ':' in name else name}:{port}"

    def close(self) -> None:
        """Stop the HTTP server from listening. Requests that are being answered end by themselves. Idempotent."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """HTTP server that handles each connection on a thread of its own."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._free = BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread that handles a new connection, or close the connection if too many are open."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection until the connection is closed; called on a thread of the connection's own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a request that failed in one line; a client that left is no failure."""
        _log.debug("request failed", exc_info=True)

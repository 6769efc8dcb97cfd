"""HTTP server, reports to the service manager, and reload requests of a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING

from ... import __version__
from ...errors import GemelError, InputError, MissingExtraError
from ..loop.running_bundle import RunningBundle
from ..loop.summary import Summary
from ..sinks.sink import Sink
from .latest_frames import LatestFrames
from .manager import ServiceManager
from .status import AnswerTimes, RunStatus, SegmentStatus

if TYPE_CHECKING:
    from .server import StatusServer

__all__ = ["RunService", "ServiceOptions"]

_log = logging.getLogger(__name__)

_AGAIN_S = 10.0
"""Seconds after which the HTTP server's port is tried again, if another program listened on it."""
_POLL_S = 0.2
"""Seconds between two checks for a reload request."""


@dataclass(frozen=True)
class ServiceOptions:
    """Options of a run's HTTP server, and of its reports to the service manager."""

    port: int | None = None
    """TCP port of the HTTP server; 0 for any free one; no server if None."""
    host: str = "127.0.0.1"
    """Address that the HTTP server listens on."""
    token: str | None = None
    """Secret that requests to the HTTP server must have; needed if other machines can connect."""
    notify: bool = False
    """Whether to tell the service manager (systemd) that started this process when the run is ready and alive."""
    listening: Callable[[str], None] = lambda url: None
    """Function called with the URL of the HTTP server, once it listens."""


class RunService:
    """HTTP server of a run, its reports to the service manager, and the thread that reloads on request.

    Args:
        running: bundle that runs.
        options: options of the server and of the service manager.
        reload: event that asks for a reload each time that it is set.

    Raises:
        InputError: the HTTP server's address is not allowed, or it needs a token. If another program listens on the
            port, the run goes on, and the port is tried again.
        MissingExtraError: prometheus-client is not installed, and an HTTP server is wanted.
    """

    def __init__(self, running: RunningBundle, options: ServiceOptions, reload: Event | None = None) -> None:
        self._running, self._options, self._reload = running, options, reload
        self._over = Event()
        self._answers = AnswerTimes()
        self._status = RunStatus(
            __version__, lambda: running.bundle.path, self._segments, self._answers, running.status
        )
        self.beat = self._status.beat
        """Function that the runner calls regularly, to show that it is alive."""
        self.sinks: Sequence[Sink] = (self._answers,)
        """Sinks that collect what the HTTP server shows of the run."""
        self._manager = ServiceManager(lambda: self._status.healthy, self._status.words) if options.notify else None
        self._server: StatusServer | None = None
        if options.port is not None:
            try:
                from .metrics import RunMetrics
                from .server import PortTakenError, StatusServer
            except ModuleNotFoundError as error:
                if (error.name or "").split(".")[0] != "prometheus_client":
                    raise
                raise MissingExtraError("--metrics-port", "service") from error
            metrics, frames = RunMetrics(self._status), LatestFrames(running.queries)
            self.sinks = (self._answers, metrics, frames)
            host, port, token = options.host, options.port, options.token
            serve = partial(StatusServer, self._status, metrics, frames, running, host=host, port=port, token=token)
            try:
                self._listen(serve)
            except PortTakenError as error:
                _log.error("%s; the run goes on without, and tries again every %.0f s", error, _AGAIN_S)
                Thread(target=self._listen_later, args=(serve,), name="gemel-port", daemon=True).start()

    def begin(self, summarise: Callable[[], Summary]) -> None:
        """Tell HTTP clients and the service manager that the run takes frames, and accept reloads from now on.

        Args:
            summarise: function that returns the statistics so far, and may be called on any thread.
        """
        self._status.begin(summarise)
        if self._manager is not None:
            self._manager.ready()
        if self._reload is not None:
            Thread(target=self._wait_for_reloads, name="gemel-reload", daemon=True).start()

    def close(self) -> None:
        """Stop the HTTP server, and tell the service manager that the run ends. Idempotent."""
        self._over.set()
        if self._manager is not None:
            self._manager.stopping()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _listen(self, serve: Callable[[], StatusServer]) -> None:
        self._server = serve()
        self._options.listening(self._server.url)

    def _listen_later(self, serve: Callable[[], StatusServer]) -> None:
        """Open the HTTP server as soon as its port is free."""
        while not self._over.wait(_AGAIN_S):
            with contextlib.suppress(InputError):
                self._listen(serve)
                _log.warning("--metrics-port %s: listens now", self._options.port)
                return

    def _wait_for_reloads(self) -> None:
        assert self._reload is not None
        while not self._over.is_set():
            if not self._reload.wait(_POLL_S):
                continue
            self._reload.clear()
            if self._manager is not None:
                self._manager.reloading()
            try:
                self._running.reload(wait=True)
            except GemelError:
                # Logged by the reload itself.
                pass
            finally:
                if self._manager is not None:
                    self._manager.ready()

    def _segments(self) -> list[SegmentStatus]:
        """Return the state of every segment of weights, as the backend has them."""
        deployment = self._running.deployment
        if deployment is None:
            return []
        backend, manifest = deployment.backend, deployment.bundle.manifest
        users: dict[str, list[str]] = {name: [] for name in backend.segments}
        for model in manifest.models:
            for segment in backend.segments_of(model):
                users[segment].append(model)
        residents = backend.residents
        return [SegmentStatus(name, size, users[name], name in residents) for name, size in backend.segments.items()]

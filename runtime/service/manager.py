"""Messages to the service manager (systemd): readiness, a line of status, and the watchdog.

The protocol is that of sd_notify(3): datagrams of ``NAME=value`` lines to the socket that ``NOTIFY_SOCKET`` names.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from threading import Event, Thread

__all__ = ["ServiceManager"]

_log = logging.getLogger(__name__)

_STATUS_S = 30.0
"""Maximum seconds between two status lines for ``systemctl status``."""
_FIRST_STATUS_S = 2.0
"""Maximum seconds between the first status line, which knows no frames yet, and the second."""


class ServiceManager:
    """Connection to the service manager that started this process. Every call does nothing if there is none.

    A thread sends the watchdog's sign of life at half of the interval that the manager asks for, as long as the run is
    healthy. When the signs of life end, the manager restarts the process.

    Args:
        healthy: function that returns whether the run gives signs of life.
        words: function that returns a status line about the run.
        environment: environment variables of the process.
    """

    def __init__(
        self,
        healthy: Callable[[], bool],
        words: Callable[[], str],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._healthy, self._words = healthy, words
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._stop = Event()
        self._thread: Thread | None = None
        if self._address is not None:
            self._thread = Thread(
                target=self._live, args=(_watchdog_s(environment),), name="gemel-watchdog", daemon=True
            )

    def ready(self) -> None:
        """Tell the service manager that the run takes frames, and begin to send signs of life.

        The call does nothing after :meth:`stopping`, because a reload may end while the process ends.
        """
        if self._stop.is_set():
            return
        self._send("READY=1")
        if self._thread is not None and self._thread.ident is None:
            self._thread.start()

    def reloading(self) -> None:
        """Tell the service manager that the bundle is being exchanged; :meth:`ready` tells that this has ended."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Tell the service manager that the process is about to end."""
        self._stop.set()
        self._send("STOPPING=1")

    def _live(self, watchdog_s: float | None) -> None:
        """Send signs of life and status lines to the service manager until the process ends."""
        regular = _STATUS_S if watchdog_s is None else min(_STATUS_S, watchdog_s / 2)
        pause = min(_FIRST_STATUS_S, regular)
        while True:
            alive = ["WATCHDOG=1"] if watchdog_s is not None and self._healthy() else []
            self._send("\n".join([*alive, f"STATUS={self._words()}"]))
            if self._stop.wait(pause):
                return
            pause = regular

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
                link.sendto(message.encode(), self._address)
        except OSError as error:
            _log.debug("the service manager does not listen: %s", error)


def _address(path: str) -> str | None:
    """Return the address of the service manager's socket from its name; None if there is no name.

    A name that begins with ``@`` is in Linux's abstract namespace.
    """
    if not path.startswith(("/", "@")):
        return None
    return f"\0{path[1:]}" if path.startswith("@") else path


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Return the seconds within which the service manager wants a sign of life from this process; None for never."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) > 0 else None

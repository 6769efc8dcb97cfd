"""Messages to the service manager: readiness, signs of life only while healthy, and silence without a manager."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemel.runtime.service.logs import set_up_logging
from gemel.runtime.service.manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.bind(str(tmp_path / "notify"))
        link.settimeout(10)
        yield link


def test_ready_alive_and_stopping(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())}
    healthy = [True]
    service = ServiceManager(lambda: healthy[0], lambda: "5 queries", environment)
    service.ready()
    assert manager.recv(1000) == b"READY=1"
    for _ in range(2):
        assert manager.recv(1000) == b"WATCHDOG=1\nSTATUS=5 queries"
    healthy[0] = False
    while b"WATCHDOG" in (message := manager.recv(1000)):
        pass
    assert message == b"STATUS=5 queries"
    service.stopping()
    while message != b"STOPPING=1":
        message = manager.recv(1000)


def test_a_reload_that_ends_after_the_run_says_nothing(manager: socket.socket) -> None:
    service = ServiceManager(lambda: True, lambda: "words", {"NOTIFY_SOCKET": manager.getsockname()})
    service.ready()
    service.reloading()
    service.stopping()
    service.ready()
    service.stopping()
    kinds: list[bytes] = []
    while kinds.count(b"STOPPING") < 2:
        kinds.append(manager.recv(1000).split(b"=")[0])
    # The thread that sends status lines may send one at any time.
    assert [each for each in kinds if each != b"STATUS"] == [b"READY", b"RELOADING", b"STOPPING", b"STOPPING"]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "nonsense"}, {"NOTIFY_SOCKET": "/nowhere/socket"}])
def test_no_manager(environment: dict[str, str]) -> None:
    service = ServiceManager(lambda: True, lambda: "", environment)
    service.ready()
    service.stopping()


def test_the_watchdog_of_another_process_is_left_alone(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    service = ServiceManager(lambda: True, lambda: "words", environment)
    service.ready()
    assert [manager.recv(1000), manager.recv(1000)] == [b"READY=1", b"STATUS=words"]
    service.stopping()


@pytest.fixture
def quiet_again() -> Iterator[None]:
    logger = logging.getLogger("gemel")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.usefixtures("quiet_again")
def test_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("gemel.feeds")
    set_up_logging("info")
    logger.info("feed %s: runs", "gate")
    logger.debug("unseen")
    set_up_logging("warning", as_json=True)
    logger.info("unseen")
    logger.warning("two\nlines")
    text, line = capsys.readouterr().err.splitlines()
    stamp, level, message = text.split(" ", 2)
    assert stamp.endswith("Z") and (level, message) == ("info", "feed gate: runs")
    record = json.loads(line)
    assert record["message"] == "two lines" and record["level"] == "warning" and record["at"] > 1e9

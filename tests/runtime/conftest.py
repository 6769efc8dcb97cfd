"""Fixtures for tests of runs that swap weights."""

from __future__ import annotations

import pytest
from swaps import Runs

from gemel.runtime.loop import runner
from gemel.runtime.planning import review


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a feed count as silent after 30 ms, and review plans every 5 ms."""
    monkeypatch.setattr(runner, "_SILENT_MS", 30.0)
    monkeypatch.setattr(review, "_EVERY_MS", 5.0)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times until which the runner waited, one for each wait."""
    found: list[float] = []
    wait = runner.Runner.wait

    def counted(self: runner.Runner, until: float) -> None:
        found.append(until)
        wait(self, until)

    monkeypatch.setattr(runner.Runner, "wait", counted)
    return found


@pytest.fixture
def runs() -> Runs:
    return Runs()

"""What tests of swapping runs need."""

from __future__ import annotations

import pytest
from swaps import Runs

from gemel.runtime.loop import pipeline
from gemel.runtime.planning import review


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed counts as silent soon, and plans are looked at often."""
    monkeypatch.setattr(pipeline, "_SILENT_MS", 30.0)
    monkeypatch.setattr(review, "_EVERY_MS", 5.0)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Until when the runner waited, each time."""
    found: list[float] = []
    wait = pipeline._Runner.wait

    def counted(self: pipeline._Runner, until: float) -> None:
        found.append(until)
        wait(self, until)

    monkeypatch.setattr(pipeline._Runner, "wait", counted)
    return found


@pytest.fixture
def runs() -> Runs:
    return Runs()

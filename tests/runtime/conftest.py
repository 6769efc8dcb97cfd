"""Fixtures for tests of runs: shorter waits, and a bundle whose models share a stem."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import write_video
from stem_bundles import stem_workload
from swaps import Runs

from gemel.bundles.reader import Bundle, open_bundle
from gemel.compiler import compile_workload
from gemel.runtime.loop import runner
from gemel.runtime.ort import bake_stems
from gemel.runtime.planning import review
from gemel.workload import Workload


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


@pytest.fixture
def stems(tmp_path: Path, workload_in: Callable[..., Workload]) -> Bundle:
    """Return a bundle of three models of the feed ``yard``, of which ``a`` and ``b`` have a stem in common."""
    write_video(tmp_path / "yard.mp4")
    workload = stem_workload(tmp_path, workload_in, [0, 1, 2], [0, 1, 8], [5, 6, 7])
    return open_bundle(compile_workload(workload, tmp_path / "bundle").path)


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let baking measure that stems pay."""
    monkeypatch.setattr(bake_stems, "cpu_times", lambda runs: [10.0, 6.0, 4.0])

"""Lines that say what a merge is doing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import Progress

pytest.importorskip("torch")

from gemel.cli.merge_progress import merge_listener
from gemel.console import Stop
from gemel.merging.layers.sharing import SharingMap
from gemel.merging.search.forecast import Forecast
from gemel.merging.search.keeping import SAVES_LESS
from gemel.merging.strategies import Verdict
from gemel.merging.training.trial import Outcome, Trial


def test_trials_that_would_save_too_little_are_said_once_in_a_row() -> None:
    console = Console(record=True, width=200)
    listener = merge_listener(Progress(console=console), Stop())
    listener.forecasts.append(Forecast(0, 0, None))
    report = SimpleNamespace(saving=0.5)
    for group, ended in (("one", SAVES_LESS), ("two", SAVES_LESS), ("three", "start"), ("four", SAVES_LESS)):
        outcome = Outcome({"cars": 0.0}, {"cars": 0.0}, frozenset(), 0, 0.0, ended)
        trial = Trial(group, SharingMap(), frozenset({"cars"}))
        listener.verdict(Verdict(trial, outcome, False, SharingMap()), report)
    said = [line.strip() for line in console.export_text().splitlines() if line.strip()]
    assert [line.split(":")[0].split()[-1] for line in said] == ["one", "three", "four"]
    assert "hardly more than forms" in said[0] and "keeps" not in said[0]

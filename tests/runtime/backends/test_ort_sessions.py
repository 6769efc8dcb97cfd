"""Tests of the baseline with one session per model: the same answers, under the same budget."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gemel.bundles.reader import open_bundle
from gemel.errors import BackendError, InputError
from gemel.runtime.backends import open_backend
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.backends.ort_sessions import OrtSessions
from gemel.runtime.memory.loading import Loading
from gemel.runtime.run import RunOptions, run_bundle

IMAGES = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)


def test_answers_are_those_of_the_default_backend(bundle: Path) -> None:
    opened = open_bundle(bundle)
    with OrtSessions(opened) as ours, OrtCpu(opened) as other:
        for model in ("a", "b"):
            outputs = []
            for backend in (ours, other):
                backend.activate(model)
                outputs.append(backend.run(model, "main", {"image": IMAGES})["logits"])
                backend.release(model)
            np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-6)


def test_a_model_is_unloaded_where_there_is_no_room_for_the_next(bundle: Path) -> None:
    with OrtSessions(open_bundle(bundle), memory="min") as backend:
        for model in ("a", "b", "a"):
            backend.activate(model)
            assert set(backend.arena.sessions) == {model}
            backend.release(model)
        assert backend.stats.loads == 3
        assert 0 < backend.stats.peak <= backend.budget < sum(backend.segments.values())
        with pytest.raises(BackendError, match="model 'a', stage 'main': not active"):
            backend.run("a", "main", {"image": IMAGES})
    with pytest.raises(InputError, match="the largest model alone needs"):
        OrtSessions(open_bundle(bundle), memory=10)


def test_what_is_unloaded_may_leave_the_page_cache(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, offset, length, __: told.append((offset, length)))
    opened = open_bundle(bundle)
    with OrtSessions(opened, loading=Loading(cold=True)) as backend:
        backend.activate("a")
        backend.release("a")
        backend.evict()
    segments = opened.manifest.segments
    assert told == [(segments[name].offset, segments[name].length) for name in opened.manifest.models["a"].segments]


def test_a_run(bundle: Path) -> None:
    opened = open_bundle(bundle)
    options = RunOptions(backend="ort-sessions", memory="min", policy="nexus", offline=True, frames=3, threads=1)
    summary = run_bundle(opened, options)
    assert summary.backend == "ort-sessions"
    assert all(query.processed == 3 for query in summary.run.queries.values())
    with open_backend(opened, "ort-sessions") as backend:
        assert isinstance(backend, OrtSessions)

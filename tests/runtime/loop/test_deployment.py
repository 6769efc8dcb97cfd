"""Bundles on a device: what was measured decides which frames run together, and which loads count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scripted import Recorder

from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.frames.frame import Frame
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.loop import device_profile
from gemel.runtime.loop.deployment import DeployOptions, deploy
from gemel.runtime.loop.measure_times import Times
from gemel.runtime.loop.summary import RunCounts
from gemel.runtime.memory.loading import Loading
from gemel.runtime.run import RunOptions, run_bundle

QUERIES = {"a": "yard", "b": "yard", "c": "gate"}


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let measurements say that batches of model a pay."""

    def measure_times(bundle: Bundle, backend: OrtCpu, progress: object) -> Times:
        run = {"a": {1: 1.0, 2: 1.2, 4: 1.5}, "b": {1: 1.0, 2: 2.0, 4: 4.0}}
        return Times(load=dict.fromkeys(backend.segments, 100.0), run=run, as_batch={"a": (2, 4)})

    monkeypatch.setattr(device_profile, "measure_times", measure_times)


@pytest.mark.parametrize(("memory", "expected"), [("min", [("a", 3), ("b", 1)]), ("all", [("a", 1)] * 3 + [("b", 1)])])
def test_batches_that_pay_are_run(
    memory: str, expected: list[tuple[str, int]], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[str, int]] = []
    run = OrtCpu.run

    def counted(self: OrtCpu, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rows.append((model, len(next(iter(inputs.values())))))
        return run(self, model, stage, inputs)

    monkeypatch.setattr(OrtCpu, "run", counted)
    deployment = deploy(open_bundle(bundle), QUERIES, DeployOptions("ort-cpu", memory, threads=1))
    try:
        image = np.zeros((8, 8, 3), np.uint8)
        yard, gate = Frame("yard", 0, image, 0.0, 0.0), [Frame("gate", index, image, 0.0, 0.0) for index in (0, 1)]
        pairs = [("a", yard), ("b", yard), ("c", gate[0]), ("c", gate[1])]
        assert not [each for each in deployment.infer(pairs) if isinstance(each, Exception)]
        assert sorted(rows) == expected
    finally:
        deployment.close()


def test_a_run_of_batches_has_the_same_answers(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OrtCpu.run

    def slow(*given: Any) -> dict[str, NDArray[Any]]:
        # Frames come faster than they are answered, so that more than one waits.
        sleep(0.01)
        return run(*given)

    monkeypatch.setattr(OrtCpu, "run", slow)
    # Frames may be so late that a turn has time for all that came while weights were loaded.
    document = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**document, "sla_ms": 2000}))
    found = []
    for memory in ("min", "all"):
        recorder = Recorder()
        options = RunOptions(memory=memory, frames=12, offline=True, threads=1)
        summary = run_bundle(open_bundle(bundle), options, sinks=[recorder])
        assert not summary.failures
        assert {name: query.processed for name, query in summary.run.queries.items()} == dict.fromkeys(QUERIES, 12)
        counts = {name: query.ran for name, query in summary.run.queries.items()}
        assert counts["b"] == RunCounts(12, 12)
        assert all(each.frames == 12 for each in counts.values())
        # Turns of a and c have up to four frames where weights are swapped.
        assert (counts["a"].runs < 12 and counts["c"].runs < 12) is (memory == "min")
        assert summary.to_json()["queries"]["a"]["frames_per_run"] == round(12 / counts["a"].runs, 3)
        found.append({(query, index): result for query, index, result in recorder.results})
    batched, single = found
    assert batched.keys() == single.keys()
    for key, result in batched.items():
        other = single[key]
        assert isinstance(result, tuple) and isinstance(other, tuple)
        assert [each.label for each in result] == [each.label for each in other]
        assert [each.score for each in result] == pytest.approx([each.score for each in other], abs=1e-5)


def test_batches_that_were_measured_before_are_run_where_nothing_is_planned(bundle: Path) -> None:
    opened = open_bundle(bundle)
    frames = [Frame("gate", index, np.zeros((8, 8, 3), np.uint8), 0.0, 0.0) for index in range(4)]
    for measured in (False, True):
        if measured:
            with OrtCpu(opened, threads=1) as backend:
                device_profile.profile_of(opened, backend)
        deployment = deploy(opened, QUERIES, DeployOptions("ort-cpu", "all", threads=1))
        try:
            assert deployment.swapping is None
            list(deployment.infer([("c", frame) for frame in frames]))
            assert deployment.infer.counts == {"c": RunCounts(1, 4) if measured else RunCounts(4, 4)}
        finally:
            deployment.close()


def test_loads_of_opening_models_do_not_count(bundle: Path) -> None:
    options = DeployOptions("ort-cpu", "all", threads=1, loading=Loading(bandwidth=1e5))
    deployment = deploy(open_bundle(bundle), QUERIES, options)
    try:
        assert set(deployment.backend.residents) == set(deployment.backend.segments)
        assert (deployment.loads.loads, deployment.loads.loaded, deployment.loads.blocked_s) == (0, 0, 0)
        # Loads in the run count.
        deployment.backend.evict()
        deployment.backend.activate("a")
        deployment.backend.release("a")
        own = deployment.backend.segments_of("a")
        sizes = [deployment.backend.segments[segment] for segment in own]
        assert (deployment.loads.loads, deployment.loads.loaded) == (len(sizes), sum(sizes))
        assert deployment.loads.blocked_s > 0
    finally:
        deployment.close()

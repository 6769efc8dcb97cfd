"""Bundles on a device: what was measured decides which frames run together, and which loads count."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.bundles.reader import Bundle, open_bundle
from gemel.frames.frame import Frame
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.loop import device_profile
from gemel.runtime.loop.deployment import DeployOptions, deploy
from gemel.runtime.loop.measure_times import Times
from gemel.runtime.memory.loading import Loading

QUERIES = {"a": "yard", "b": "yard", "c": "gate"}


@pytest.mark.parametrize(("memory", "expected"), [("min", [("a", 3), ("b", 1)]), ("all", [("a", 1)] * 3 + [("b", 1)])])
def test_batches_that_pay_are_run(
    memory: str, expected: list[tuple[str, int]], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_times(bundle: Bundle, backend: OrtCpu, progress: object) -> Times:
        run = {name: {1: 1.0, 2: 1.5, 4: 2.0} for name in bundle.manifest.models}
        return Times(load=dict.fromkeys(backend.segments, 1.0), run=run, as_batch={"a": (2, 4)})

    monkeypatch.setattr(device_profile, "measure_times", measure_times)
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

"""Profiles say how long a shared stem runs, for the models that share one."""

from __future__ import annotations

from typing import Any

import pytest

from gemel.bundles.reader import Bundle
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.loop import device_profile, stem_times
from gemel.runtime.loop.device_profile import measure_profile, profile_after, profile_of
from gemel.runtime.loop.measure_times import Times
from gemel.runtime.loop.stem_times import measure_stem
from gemel.runtime.planning.profile import StemProfile


def test_only_models_that_share_a_stem_have_its_time(stems: Bundle, faster: None) -> None:
    spec = stems.manifest.models["a"].stem
    assert spec is not None
    with OrtCpu(stems) as backend:
        profile = measure_profile(stems, backend)
        found = {name: model.stem for name, model in profile.models.items()}
        assert found["c"] is None
        for stem in (found["a"], found["b"]):
            assert stem is not None and stem.id == spec.id
            assert stem.run_ms > 0
        # Another process reads the same from the cache.
        assert profile_of(stems, backend) == profile_of(stems, backend)
        assert not backend._active


def test_times_of_a_stem_that_is_shared_no_more_are_left_out(
    stems: Bundle, faster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OrtCpu(stems) as backend:
        profile = measure_profile(stems, backend)
        assert profile_after(stems, backend, stems, profile).models["a"].stem == profile.models["a"].stem
        monkeypatch.setattr(OrtCpu, "stems", {})
        assert profile_after(stems, backend, stems, profile).models["a"].stem is None
        assert measure_profile(stems, backend).models["a"].stem is None


def test_times_without_stems_make_a_profile(stems: Bundle, faster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_times(bundle: Bundle, backend: OrtCpu, *_: object) -> Times:
        run = {name: {1: 1.0} for name in bundle.manifest.models}
        return Times(load=dict.fromkeys(backend.segments, 1.0), run=run, stem={"a": 0.5})

    monkeypatch.setattr(device_profile, "measure_times", measure_times)
    with OrtCpu(stems) as backend:
        models = measure_profile(stems, backend).models
        assert models["a"].stem == StemProfile(id=stems.manifest.models["a"].stem.id, run_ms=0.5)  # type: ignore[union-attr]
        assert models["b"].stem is None


def test_the_median_of_five_runs_is_taken(stems: Bundle, faster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    now, ran = [0.0], list[str]()
    takes = iter([9.0, 0.003, 0.001, 0.002, 0.008, 0.002])

    class Clocked(OrtCpu):
        def run(self, model: str, stage: str, inputs: Any) -> Any:
            ran.append(stage)
            now[0] += next(takes)
            return super().run(model, stage, inputs)

    monkeypatch.setattr(stem_times, "perf_counter", lambda: now[0])
    with Clocked(stems) as backend:
        assert measure_stem(stems, backend, "a") == 2.0
        assert ran == ["stem"] * 6

"""The profile of a bundle says what was measured, and is measured once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import query, save, swap_for_a_link, swap_for_a_pipe
from tiny_models import TinyTransformer

from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.compiler import compile_workload
from gemel.errors import InputError
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.loop import device_profile
from gemel.runtime.loop.batches import BATCHES
from gemel.runtime.loop.device_profile import kept_at, measure_profile, profile_after, profile_of
from gemel.runtime.loop.measure_times import Times
from gemel.runtime.memory.loading import WARM, Loading
from gemel.runtime.ort.bake import verify_cache
from gemel.runtime.planning.planner import make_plan
from gemel.runtime.planning.profile import Profile
from gemel.workload import Workload

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def path(bundle_folder: Path) -> Path:
    return bundle_folder / "bundle"


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[Times]:
    """Replace measurements by fixed times that differ from call to call; the list has those made so far."""
    made: list[Times] = []

    def measure_times(bundle: Bundle, backend: OrtCpu, progress: Callable[[str], None]) -> Times:
        time = 1.5 + len(made)
        run = {name: {1: time, 2: 2 * time} for name in bundle.manifest.models}
        as_batch = {"a": (2,)}
        made.append(Times(load=dict.fromkeys(backend.segments, time / 100), run=run, as_batch=as_batch))
        return made[-1]

    monkeypatch.setattr(device_profile, "measure_times", measure_times)
    return made


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((path / MANIFEST).read_text())
    change(document)
    (path / MANIFEST).write_text(json.dumps(document))


def first_load(profile: Profile) -> float | None:
    return next(iter(profile.segments.values())).load_ms


@pytest.mark.parametrize("cold", [False, True])
def test_measured(path: Path, cold: bool) -> None:
    bundle = open_bundle(path)
    with OrtCpu(bundle, memory="min", threads=1, loading=Loading(cold)) as backend:
        profile = measure_profile(bundle, backend)
        assert {name: spec.bytes for name, spec in profile.segments.items()} == backend.segments
        assert {name: model.segments for name, model in profile.models.items()} == {
            name: backend.segments_of(name) for name in ("a", "b")
        }
        assert backend.stats.peak <= backend.budget
        assert profile.memory == profile.budget() == backend.room
    assert all(spec.load_ms is not None and spec.load_ms > 0 for spec in profile.segments.values())
    assert profile.link.bandwidth > 0
    for model in profile.models.values():
        assert tuple(model.run_ms) == BATCHES
        assert min(model.run_ms.values()) > 0
    assert {name: (each.model, each.feed, each.fps) for name, each in profile.queries.items()} == {
        "a": ("a", "yard", 10),
        "b": ("b", "yard", 10),
        "c": ("a", "gate", 5),
    }
    assert profile.sla_ms == bundle.manifest.sla_ms
    assert set(make_plan(profile, profile.budget("min")).order) == {"a", "b", "c"}


def test_models_in_mode_constant_load_nothing(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    save(TinyTransformer(), tmp_path / "t.safetensors")
    workload = workload_in(query("t", "tiny_models:TinyTransformer"))
    bundle = open_bundle(compile_workload(workload, tmp_path / "bundle").path)
    with OrtCpu(bundle, threads=1) as backend:
        profile = measure_profile(bundle, backend)
    assert profile.segments == {}
    assert profile.models["t"].segments == ()
    assert tuple(profile.models["t"].run_ms) == BATCHES


def test_a_feed_without_a_rate(path: Path, measurements: list[Times]) -> None:
    change_manifest(path, lambda document: document["feeds"]["gate"].pop("fps"))
    bundle = open_bundle(path)
    with OrtCpu(bundle) as backend:
        assert {name: each.fps for name, each in measure_profile(bundle, backend).queries.items()} == {
            "a": 10,
            "b": 10,
            "c": 30,
        }


def test_a_bundle_without_queries(path: Path, measurements: list[Times]) -> None:
    change_manifest(path, lambda document: document.update(queries={}))
    bundle = open_bundle(path)
    with OrtCpu(bundle) as backend, pytest.raises(InputError, match="queries: there are none"):
        profile_of(bundle, backend)
    assert not kept_at(backend).exists()


def test_measured_once(path: Path, measurements: list[Times]) -> None:
    bundle = open_bundle(path)
    with OrtCpu(bundle, threads=1) as backend:
        first = profile_of(bundle, backend)
        assert profile_of(bundle, backend) == first
        assert len(measurements) == 1
        # All other files of the cache are as they were.
        assert verify_cache(bundle) == [backend.folder]
        assert sorted(file.name for file in backend.folder.iterdir() if file.name[0] in ".p") == [
            "profile-1-threads-warm.json"
        ]
        assert profile_of(bundle, backend, fresh=True) != first
        assert first_load(profile_of(bundle, backend)) == 0.025
        assert len(measurements) == 2
    with OrtCpu(open_bundle(path), threads=1) as backend:
        profile_of(bundle, backend)
        assert len(measurements) == 2


def test_batches_are_kept_with_the_times(path: Path, measurements: list[Times]) -> None:
    bundle = open_bundle(path)
    with OrtCpu(bundle, threads=1) as backend:
        for _ in range(2):
            profile = profile_of(bundle, backend)
            assert {name: model.as_batch for name, model in profile.models.items()} == {"a": (2,), "b": ()}
        # Changed by somebody else, they are measured again.
        kept_at(backend).write_text(kept_at(backend).read_text().replace('"as_batch": {', '"as_batch": {"b": [2],'))
        assert profile_of(bundle, backend).models["b"].as_batch == ()
    assert len(measurements) == 2


def test_a_file_without_batches_is_measured_again(path: Path, measurements: list[Times]) -> None:
    bundle = open_bundle(path)
    with OrtCpu(bundle, threads=1) as backend:
        profile_of(bundle, backend)
        document = json.loads(kept_at(backend).read_text())
        del document["times"]["as_batch"]
        kept_at(backend).write_text(json.dumps(document))
        assert profile_of(bundle, backend).models["a"].as_batch == (2,)
    assert len(measurements) == 2


def test_a_model_that_ran_before_in_the_same_programs_keeps_its_batches(
    path: Path, measurements: list[Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, asked = open_bundle(path), list[list[str]]()

    def measure_runs(bundle: Bundle, backend: OrtCpu, models: list[str]) -> Times:
        asked.append(models)
        return Times(load={}, run={name: {1: 9.0, 4: 12.0} for name in models}, as_batch=dict.fromkeys(models, (4,)))

    monkeypatch.setattr(device_profile, "measure_runs", measure_runs)
    with OrtCpu(bundle, threads=1) as backend:
        known = profile_of(bundle, backend)
        found = profile_after(bundle, backend, bundle, known)
        assert {name: model.as_batch for name, model in found.models.items()} == {"a": (2,), "b": ()}
        assert found.models["a"].run_ms == known.models["a"].run_ms
        # b was not known before.
        less = known.model_copy(update={"models": {"a": known.models["a"]}})
        found = profile_after(bundle, backend, bundle, less)
        assert {name: model.as_batch for name, model in found.models.items()} == {"a": (2,), "b": (4,)}
    assert asked == [[], ["b"]]


def test_measured_for_each_number_of_threads_and_way_to_load(path: Path, measurements: list[Times]) -> None:
    bundle = open_bundle(path)
    for threads in (1, 2, 1, 2):
        for loading in (WARM, Loading(cold=True), Loading(bandwidth=1e9)):
            with OrtCpu(bundle, threads=threads, loading=loading) as backend:
                profile_of(bundle, backend)
    assert len(measurements) == 6


def other_digit(file: Path) -> None:
    text = file.read_text()
    file.write_text(text.replace("1.5", "1.6", 1))


HARMS: list[Callable[[Path], object]] = [
    Path.unlink,
    swap_for_a_pipe,
    swap_for_a_link,
    other_digit,
    lambda file: file.write_bytes(file.read_bytes()[:-20]),
    lambda file: file.write_bytes(b"\xff\x00"),
    lambda file: file.write_text("[" * 100_000),
    lambda file: file.write_text('{"times": {"load": {}, "run": {}}, "digest": ""}'),
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_profile_is_measured_again(
    harm: Callable[[Path], object], path: Path, measurements: list[Times]
) -> None:
    bundle = open_bundle(path)
    with OrtCpu(bundle, threads=1) as backend:
        profile_of(bundle, backend)
        harm(kept_at(backend))
        for _ in range(2):
            assert first_load(profile_of(bundle, backend)) == 0.025
    assert len(measurements) == 2


def test_times_of_segments_that_are_not_there(
    path: Path, measurements: list[Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(path)
    with OrtCpu(bundle, threads=1) as backend:
        profile_of(bundle, backend)
        monkeypatch.setattr(OrtCpu, "segments", {"another": 64})
        monkeypatch.setattr(OrtCpu, "segments_of", lambda self, model: ("another",))
        assert set(profile_of(bundle, backend).segments) == {"another"}
    assert len(measurements) == 2


def test_another_device(path: Path, measurements: list[Times], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(path)
    with OrtCpu(bundle, threads=1) as backend:
        profile_of(bundle, backend)
        monkeypatch.setattr("os.cpu_count", lambda: 4096)
        profile_of(bundle, backend)
    assert len(measurements) == 2


def test_another_bundle(path: Path, measurements: list[Times]) -> None:
    files = []
    for sla in (100, 200):
        change_manifest(path, lambda document, sla=sla: document.update(sla_ms=sla))  # type: ignore[misc]
        bundle = open_bundle(path)
        with OrtCpu(bundle, threads=1) as backend:
            assert profile_of(bundle, backend).sla_ms == sla
            files.append(kept_at(backend))
            files[0].replace(files[-1])
            profile_of(bundle, backend)
    assert len(measurements) == 3


def test_a_folder_that_cannot_be_written(
    path: Path, tmp_path: Path, measurements: list[Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(path)
    # A file in the way fails for root too, whom permissions do not stop.
    (tmp_path / "file").touch()
    monkeypatch.setattr(OrtCpu, "folder", tmp_path / "file")
    with OrtCpu(bundle) as backend:
        for _ in range(2):
            profile_of(bundle, backend)
    assert len(measurements) == 2
